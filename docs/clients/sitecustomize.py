"""Points an unchanged program that uses fal_client at a kiln server:

    KILN_URL=http://127.0.0.1:8080 PYTHONPATH=/path/to/the/folder/of/this/file python program.py

Python imports a module of this name by itself when it starts. The client reads its addresses from module constants,
so they are replaced at the moment the module is imported, and no other program is touched.
"""

import importlib.abc
import importlib.machinery
import os
import sys

KILN = os.environ.get("KILN_URL", "").rstrip("/")


class _Finder(importlib.abc.MetaPathFinder):
    """Finds fal_client.client as usual, and has its constants replaced once it is loaded."""

    def find_spec(self, name, path=None, target=None):
        if name != "fal_client.client":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module):
                load(module)
                module.RUN_URL_FORMAT = KILN + "/run/"
                module.QUEUE_URL_FORMAT = KILN + "/queue/"
                module.REST_URL = KILN + "/rest"
                module.CDN_URL = KILN + "/cdn"

            spec.loader.exec_module = exec_module
        return spec


if KILN:
    sys.meta_path.insert(0, _Finder())
