package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
)

const removeTimeout = time.Minute

func (c *cli) runCommand() *cobra.Command {
	f := &createFlags{}
	login := &sshFlags{}
	var detach, remove bool
	cmd := &cobra.Command{
		Use: "run [flags] [IMAGE] [-- COMMAND...]", Short: "Create a VM, wait until it is ready and log in", Args: imageArg(f),
		Long: `Create a VM, wait until it is ready and attach to it: over SSH when it has a
network and this is a terminal, else to its serial console. A command after --
is run over SSH, and its exit code is passed on.

Unless --ssh-key, --user-data or --template is given, your own public keys
(~/.ssh/id_*.pub) are put into the VM.`,
		Example: "  hatch run --rm minimal\n  hatch run --rm -- uname -a\n  hatch run -d --name web",
		RunE: func(cmd *cobra.Command, args []string) error {
			command := afterDash(cmd, args)
			if detach && (remove || len(command) > 0) {
				return usage(cmd, "-d goes with neither --rm nor a command")
			}
			if f.machine.noNet && len(command) > 0 {
				return usage(cmd, "a command is run over SSH, which needs a network")
			}
			c.ownKeys(cmd, f)
			if remove {
				f.temporary, f.key = true, cmp.Or(f.key, "run-"+rand.Text())
			}
			v, err := c.create(cmd, f, true)
			if v.ID != "" && remove {
				defer c.removeAfter(cmd.Context(), v)
			}
			switch {
			case detach && v.ID != "":
				return errors.Join(c.showCreated(v, f.quiet), err)
			case err != nil:
				return err
			}
			return c.attach(cmd, v, login, command)
		},
	}
	f.add(c, cmd)
	login.add(cmd)
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "print the id once it is ready, and leave it running")
	cmd.Flags().BoolVar(&remove, "rm", false, "delete the VM afterwards")
	cmd.ValidArgsFunction = c.completeImages
	return cmd
}

func afterDash(cmd *cobra.Command, args []string) []string {
	if dash := cmd.ArgsLenAtDash(); dash >= 0 {
		return args[dash:]
	}
	return nil
}

// ownKeys gives the VM the user's own keys when nothing says who may log in.
func (c *cli) ownKeys(cmd *cobra.Command, f *createFlags) {
	given := cmd.Flags().Changed
	if given("ssh-key") || given("user-data") || given("template") || f.machine.noNet || len(c.ownSSHKeys()) == 0 {
		return
	}
	f.machine.sshKeys = []string{"default"}
}

func (c *cli) attach(cmd *cobra.Command, v api.VM, login *sshFlags, command []string) error {
	overSSH := len(command) > 0 || v.SSHPort != 0 && c.inTTY && c.outTTY
	if !overSSH {
		return c.console(cmd.Context(), v, false)
	}
	server, err := c.client()
	if err != nil {
		return err
	}
	end := c.progress("waiting for SSH on " + displayName(v))
	_, err = server.WaitVM(cmd.Context(), v.ID, "ssh", defaultWait)
	end()
	if err != nil {
		return fmt.Errorf("cannot log in to %s: %w", displayName(v), err)
	}
	return c.ssh(cmd.Context(), v, login, command)
}

// removeAfter deletes the VM of a run --rm, also when the run was interrupted.
func (c *cli) removeAfter(ctx context.Context, v api.VM) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	server, err := c.client()
	if err == nil {
		err = c.remove(ctx, server, v)
	}
	if err != nil {
		c.report(hint(fmt.Errorf("cannot remove %s: %w", displayName(v), err), "hatch rm -f %s", v.ID))
	}
}
