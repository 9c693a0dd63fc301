def require_whole(files, what):
    return None
