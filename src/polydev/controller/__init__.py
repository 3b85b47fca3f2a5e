"""The controller: the ASGI service of a host, which runs sessions on browser VMs.

    request --api--> store (the database is the truth) --machines.Driver--> VMs as the database says
    viewer --relay--> the VM's RFB port          the host --host.SampleLoop--> samples, alerts

It runs from a release's own venv. Imports only go down this list:

    __main__, cli, server       the command line, and the HTTP server
    app                         the application: routes and middleware put together
    web, middleware             the pages; what all requests pass
    api                         the routes of the API
    app_services                the objects that routes use, made once
    auth, relay, machines, host, webhooks   callers, viewers, VMs, the host, messages to others
    store                       the database
    settings, entities          configuration and nouns
"""
