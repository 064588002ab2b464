"""The appliance: a throw-away VM for what needs a kernel of its own, without rights on the host."""
