package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// forkFlags are the flags of fork.
type forkFlags struct {
	count    int
	name     string
	labels   []string
	userData string
	sshKeys  []string
}

func (f *forkFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.IntVarP(&f.count, "count", "n", 1, "how many VMs to make")
	flags.StringVar(&f.name, "name", "", "name and hostname; with several VMs -1, -2 and so on is added")
	flags.StringArrayVar(&f.labels, "label", nil, "`KEY=VALUE` to find it by, in place of the VM's own (repeatable)")
	flags.StringVar(&f.userData, "user-data", "", "new cloud-init user data from `file`, or - for stdin")
	flags.StringArrayVar(&f.sshKeys, "ssh-key", nil, "public key `file` for SSH, or default for ~/.ssh/id_*.pub (repeatable)")
}

func (f *forkFlags) request(c *cli, cmd *cobra.Command) (api.ForkVM, error) {
	req := api.ForkVM{Name: f.name}
	if cmd.Flags().Changed("count") {
		req.Count = &f.count
	}
	var err error
	if req.Labels, err = readLabels(f.labels); err != nil {
		return req, err
	}
	if req.SSHAuthorizedKeys, err = c.readSSHKeys(f.sshKeys); err != nil {
		return req, err
	}
	if cmd.Flags().Changed("user-data") {
		req.UserData, err = c.readUserData(f.userData)
	}
	return req, err
}

func (c *cli) forkCommand() *cobra.Command {
	f := &forkFlags{}
	cmd := &cobra.Command{
		Use: "fork VM", Short: "Make VMs that go on from where a VM is, and print their ids", Args: oneArg("VM"),
		Long: `Make new VMs that go on from where a VM is: programs and files are as they are
there at this moment. Each gets a hostname, an address and a MAC of its own.
The ids are printed once all run as themselves. The VM itself goes on.

With --user-data cloud-init does all its work once more in the new VMs; with
--ssh-key alone it adds the keys, and no user data is applied again.`,
		Example:           "  hatch fork web -n 3 --name worker",
		ValidArgsFunction: c.completeVMFirst,
		RunE: func(cmd *cobra.Command, args []string) error {
			made, err := onOne(c, cmd, args[0], "forking", func(ctx context.Context, server *client.Client, v api.VM) (api.Copies, error) {
				req, err := f.request(c, cmd)
				if err != nil {
					return api.Copies{}, err
				}
				return server.ForkVM(ctx, v.ID, req)
			})
			if err != nil {
				return fmt.Errorf("cannot fork %s: %w", args[0], err)
			}
			return c.showCopies(made)
		},
	}
	f.add(cmd)
	return cmd
}

// showCopies prints the new VMs, and says which could not be made.
func (c *cli) showCopies(made api.Copies) error {
	if err := c.printOne(made, func() { printIDs(c, made.VMs, vmName) }); err != nil {
		return err
	}
	for _, f := range made.Failed {
		failed := fmt.Errorf("cannot make one of the VMs: %w", errors.New(f.Message))
		if f.Hint != "" {
			failed = hint(failed, "%s", f.Hint)
		}
		c.report(failed)
	}
	if len(made.Failed) > 0 {
		return exitError(exitOwn)
	}
	return nil
}

// createCopies makes several VMs of a snapshot, as create makes one.
func (c *cli) createCopies(cmd *cobra.Command, f *createFlags) error {
	made, err := c.sendCopies(cmd, f)
	if err != nil {
		return fmt.Errorf("cannot create the VMs: %w", err)
	}
	if err := c.showCopies(made); err != nil || f.wait != "ready" {
		return err
	}
	server, err := c.client()
	if err != nil {
		return err
	}
	for _, v := range made.VMs {
		if _, err := c.awaitReady(cmd.Context(), server, v, f.timeout); err != nil {
			return err
		}
	}
	return nil
}

func (c *cli) sendCopies(cmd *cobra.Command, f *createFlags) (api.Copies, error) {
	server, err := c.client()
	if err != nil {
		return api.Copies{}, err
	}
	req, err := f.request(cmd.Context(), c, cmd, server)
	if err != nil {
		return api.Copies{}, err
	}
	defer c.progress("creating the VMs")()
	return server.CreateVMs(cmd.Context(), req, client.CreateOptions{IdempotencyKey: f.key})
}
