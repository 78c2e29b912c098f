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

// runCommand is hatch run: create, then ssh or console.
type runCommand struct {
	createCommands
	ssh     sshCommands
	console consoleCommand
}

func (c runCommand) command() *cobra.Command {
	f := &createFlags{}
	login := &sshFlags{}
	var detach, remove bool
	cmd := &cobra.Command{
		Use: "run [flags] [IMAGE] [-- COMMAND...]", Annotations: exitsAsGuest(), Short: "Create a VM, wait until it is ready and log in", Args: imageArg,
		Long: `Create a VM, wait until it is ready and attach to it: over SSH if it has a
network and this is a terminal, else to its serial console. A command after --
is run over SSH, and its exit code is passed on.

Unless --ssh-key, --user-data or --template is given, your own public keys
(~/.ssh/id_*.pub) are put into the VM.`,
		Example: "  hatch run --rm minimal\n  hatch run --rm -- uname -a\n  hatch run -d --name web",
		RunE: func(cmd *cobra.Command, args []string) error {
			var command []string
			if dash := cmd.ArgsLenAtDash(); dash >= 0 {
				command = args[dash:]
			}
			if detach && (remove || len(command) > 0) {
				return usage(cmd, "-d cannot be combined with --rm or a command")
			}
			if noNet, _ := cmd.Flags().GetBool("no-network"); noNet && len(command) > 0 {
				return usage(cmd, "a command is run over SSH, which needs a network")
			}
			if err := checkTimeout(cmd, f.timeout); err != nil {
				return err
			}
			if err := c.useOwnKeys(cmd); err != nil {
				return err
			}
			if err := c.checkLogin(cmd, f, login, len(command) > 0); !detach && err != nil {
				return fmt.Errorf("cannot log in: %w", err)
			}
			if remove {
				f.temporary, f.key = true, cmp.Or(f.key, "run-"+rand.Text())
			}
			v, err := c.createVM(cmd, f, true)
			if v.ID != "" && remove {
				defer c.removeAfter(cmd.Context(), v)
			}
			switch {
			case detach && v.ID != "":
				return errors.Join(c.printCreated(v, f.quiet), err)
			case err != nil:
				return err
			}
			return c.attach(cmd, v, login, command)
		},
	}
	f.add(c.connection, cmd)
	login.add(cmd)
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "print the id once the VM is ready, and leave it running")
	cmd.Flags().BoolVar(&remove, "rm", false, "delete the VM afterwards")
	cmd.ValidArgsFunction = imageKind.complete(c.connection)
	return cmd
}

// useOwnKeys gives the VM the user's own keys unless the flags say who may log in.
func (c runCommand) useOwnKeys(cmd *cobra.Command) error {
	given := cmd.Flags().Changed
	noNet, _ := cmd.Flags().GetBool("no-network")
	if given("ssh-key") || given("user-data") || given("template") || noNet || len(c.ownSSHKeys()) == 0 {
		return nil
	}
	return cmd.Flags().Set("ssh-key", "default")
}

// checkLogin returns an error if the login is sure to fail, before there is a VM. A
// template may decide that it has no network and is attached to its console.
func (c runCommand) checkLogin(cmd *cobra.Command, f *createFlags, login *sshFlags, withCommand bool) error {
	given, _ := cmd.Flags().GetStringArray("label")
	labels, err := readLabels(given)
	if err != nil {
		return err
	}
	if _, err := sshUser(api.VM{Labels: labels}, login.user); err != nil {
		return err
	}
	noNet, _ := cmd.Flags().GetBool("no-network")
	if withCommand || c.inTTY && c.outTTY && !noNet && f.template == "" {
		return c.ssh.check()
	}
	return nil
}

func (c runCommand) attach(cmd *cobra.Command, v api.VM, login *sshFlags, command []string) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	overSSH := len(command) > 0 || v.SSHPort != 0 && c.inTTY && c.outTTY
	if !overSSH {
		return c.console.attach(cmd.Context(), server, v, false)
	}
	end := c.progress("waiting for SSH on " + displayName(v))
	_, err = server.WaitVM(cmd.Context(), v.ID, "ssh", defaultWait)
	end()
	if err != nil {
		return fmt.Errorf("cannot log in to %s: %w", displayName(v), err)
	}
	return c.ssh.login(cmd.Context(), server, v, login, command)
}

// removeAfter deletes the VM of run --rm, also after an interrupt.
func (c runCommand) removeAfter(ctx context.Context, v api.VM) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	server, err := c.client()
	if err == nil {
		err = removeVM(ctx, c.printer, server, v)
	}
	if err != nil {
		c.report(hint(fmt.Errorf("cannot remove %s: %w", displayName(v), err), "hatch rm -f %s", v.ID))
	}
}
