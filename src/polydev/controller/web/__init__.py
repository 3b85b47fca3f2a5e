"""The pages: what people see in a browser. Everything that they load, the controller serves."""
