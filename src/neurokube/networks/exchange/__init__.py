"""Models to and from elsewhere: `exporting.export_model`, `importing.import_model`, and tables of what is there.

Nothing is imported here, so that `commands` can be part of a command line that starts at once.
"""
