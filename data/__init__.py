"""Files on disk in, batches out. (Nothing is imported here: writing a sample dataset needs no torch.)"""
