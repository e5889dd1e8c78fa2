"""One upload by the official Python client, read from the disk as it is sent.

PYTHONPATH=docs/clients KILN_URL=… FAL_KEY=… python upload.py FILE     prints the file's address
"""

import sys

import fal_client

print(fal_client.upload_file(sys.argv[1]))
