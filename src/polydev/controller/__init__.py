"""The controller: the ASGI service of a host.

    request --api--> store (the database is the truth) --machines.Driver--> VMs as the database says
    viewer --relay--> the VM's RFB port          the host --host.SampleLoop--> samples, alerts

It runs from a release's own venv and shares nothing with the operator's side.
"""
