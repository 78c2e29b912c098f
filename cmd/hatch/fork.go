package main

import (
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
	flags.IntVarP(&f.count, "count", "n", 1, "how many VMs to create, up to 64")
	flags.StringVar(&f.name, "name", "", "name and hostname; with several VMs -1, -2 and so on is added")
	flags.StringArrayVar(&f.labels, "label", nil, "set label `KEY=VALUE`, instead of the VM's labels (repeatable)")
	flags.StringVar(&f.userData, "user-data", "", "new cloud-init user data from `file`, or - for stdin, up to 1 MiB")
	flags.StringArrayVar(&f.sshKeys, "ssh-key", nil, "public key `file` for SSH, or default for ~/.ssh/id_*.pub (repeatable)")
}

func (f *forkFlags) request(s streams, cmd *cobra.Command) (api.ForkVM, error) {
	req := api.ForkVM{Name: f.name}
	if cmd.Flags().Changed("count") {
		req.Count = &f.count
	}
	var err error
	if req.Labels, err = readLabels(f.labels); err != nil {
		return req, err
	}
	if req.SSHAuthorizedKeys, err = s.readSSHKeys(f.sshKeys); err != nil {
		return req, err
	}
	if cmd.Flags().Changed("user-data") {
		req.UserData, err = s.readUserData(f.userData)
	}
	return req, err
}

func (c createCommands) fork() *cobra.Command {
	f := &forkFlags{}
	cmd := &cobra.Command{
		Use: "fork VM", Short: "Clone a VM, and print the ids of the clones", Args: oneArg("VM"),
		Long: `Clone a VM: the clones continue from its current state, with the same programs
and files. Each gets its own hostname, address and MAC. The ids are printed once
all clones have their own identity. The VM itself continues.

With --user-data, cloud-init runs again in the clones; with --ssh-key alone it
only adds the keys.`,
		Example:           "  hatch fork web -n 3 --name worker",
		ValidArgsFunction: vmKind.completeFirst(c.connection),
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.count < 1 {
				return usage(cmd, "--count takes 1 or more, not %d", f.count)
			}
			req, err := f.request(c.streams, cmd)
			if err != nil {
				return fmt.Errorf("cannot fork %s: %w", args[0], err)
			}
			clones, err := onVM(c.printer, c.connection, cmd.Context(), args[0], "forking", func(server *client.Client, v api.VM) (api.Copies, error) {
				return server.ForkVM(cmd.Context(), v.ID, req)
			})
			if err != nil {
				return fmt.Errorf("cannot fork %s: %w", args[0], err)
			}
			return printClones(c.printer, clones)
		},
	}
	f.add(cmd)
	return cmd
}
