"The job notebooks, shipped with the package: each is run by the command line or by `papermill`."
