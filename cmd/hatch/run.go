package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

const removeTimeout = time.Minute

// runCommand is hatch run: create, then exec.
type runCommand struct {
	createCommands
	execs   execCommands
	console consoleCommand
}

func (c runCommand) command() *cobra.Command {
	f := &createFlags{}
	login := &sshFlags{}
	var detach, remove bool
	cmd := &cobra.Command{
		Use: "run [flags] [IMAGE] [-- COMMAND...]", Annotations: exitsAsGuest(), Short: "Create a VM, wait until it is ready and run a command in it", Args: imageArg,
		Long: `Create a VM, wait until it is ready and run a command in it, or a shell. Stdin is
passed on, a shell on a terminal gets one, and the exit code is the command's.
This needs no network, SSH server or key in the VM; the command runs as root,
unless -l or the label ` + userLabel + ` names another user. A VM whose boot
arguments have hatch.entrypoint has no shell; its console is shown.

Without --rm the VM goes on running afterwards. Unless --ssh-key, --user-data or
--template is given, your own public keys (~/.ssh/id_*.pub) are put into the VM,
for hatch ssh.`,
		Example: "  hatch run --rm minimal\n  hatch run --rm -- uname -a\n  echo 'uname -r; exit 7' | hatch run --rm minimal\n  hatch run -d --name web",
		RunE: func(cmd *cobra.Command, args []string) error {
			var command []string
			if dash := cmd.ArgsLenAtDash(); dash >= 0 {
				command = args[dash:]
			}
			if detach && (remove || len(command) > 0) {
				return usage(cmd, "-d cannot be combined with --rm or a command")
			}
			if err := checkTimeout(cmd, f.timeout); err != nil {
				return err
			}
			changed := cmd.Flags().Changed
			noNet, _ := cmd.Flags().GetBool("no-network")
			if !changed("ssh-key") && !changed("user-data") && !changed("template") && !noNet && len(c.ownSSHKeys()) > 0 {
				if err := cmd.Flags().Set("ssh-key", "default"); err != nil {
					return err
				}
			}
			given, _ := cmd.Flags().GetStringArray("label")
			labels, err := readLabels(given)
			if err != nil {
				return err
			}
			if _, err := sshUser(api.VM{Labels: labels}, login.user); err != nil {
				return fmt.Errorf("cannot log in: %w", err)
			}
			if remove {
				f.temporary = true
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
	login.add(cmd, "root")
	_ = cmd.Flags().MarkDeprecated("identity", "hatch run needs no key")
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "print the id once the VM is ready, and leave it running")
	cmd.Flags().BoolVar(&remove, "rm", false, "delete the VM afterwards")
	cmd.ValidArgsFunction = imageKind.complete(c.connection)
	return cmd
}

// loginShell is the shell of the user that it runs as.
var loginShell = []string{"sh", "-c", `exec "${SHELL:-/bin/sh}" -l`}

// attach runs the command, or a shell, through the agent: that needs no network, SSH
// server or key, and ends with the command. A VM that runs one program instead of an
// init may have no shell; its program is on the console.
func (c runCommand) attach(cmd *cobra.Command, v api.VM, login *sshFlags, command []string) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	tty := login.tty
	if len(command) == 0 {
		if strings.Contains(v.BootArgs, "hatch.entrypoint=") {
			return c.console.attach(cmd.Context(), server, v, false)
		}
		command, tty = loginShell, tty || c.inTTY && c.outTTY
	}
	body, err := c.execs.body(command, &execFlags{interactive: true, tty: tty, user: cmp.Or(login.user, v.Labels[userLabel])})
	if err != nil {
		return err
	}
	err = c.execs.attach(cmd.Context(), attachment{interactive: true, tty: tty, owned: true}, func(ctx context.Context) (*client.ExecSession, error) {
		return server.OpenExec(ctx, v.ID, body)
	})
	return withContext(err, "cannot run a command in "+displayName(v))
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
