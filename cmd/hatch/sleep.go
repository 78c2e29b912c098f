package main

import (
	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/client"
)

func (c *cli) sleepCommand() *cobra.Command {
	cmd := c.vmVerb("sleep", "sending to sleep", "Put VMs to sleep: their memory is kept, their processes end", (*client.Client).SleepVM)
	cmd.Long = `Put VMs to sleep. Their memory is kept, their processes end, and they keep
address, MAC and SSH port. They go on where they stood with hatch wake, or when
somebody reaches into them: by SSH, with exec, cp or console, or with a wait for
something inside. hatch start boots them anew.`
	return cmd
}

func (c *cli) wakeCommand() *cobra.Command {
	return c.vmVerb("wake", "waking", "Let sleeping VMs go on where they stood", (*client.Client).WakeVM)
}
