"""Sendense from Python: one channel, a token, deadlines, retries and typed errors. See docs/python-client.md.

```python
from sendense_client import Client
from sendense.backup.v1 import backup_pb2

with Client.of_node("/var/lib/sendense") as client:
    for vm in client.vms.ListVms(backup_pb2.ListVmsRequest()).vms:
        print(vm.vm_name)
```
"""

from sendense_client.client import Client
from sendense_client.errors import (
    ApiError,
    Conflict,
    DeadlineExceeded,
    InvalidRequest,
    NotAllowed,
    NotFound,
    Unavailable,
)

__all__ = [
    "ApiError",
    "Client",
    "Conflict",
    "DeadlineExceeded",
    "InvalidRequest",
    "NotAllowed",
    "NotFound",
    "Unavailable",
]
