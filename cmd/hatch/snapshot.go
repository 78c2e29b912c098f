package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

func (c *cli) snapshotCommand() *cobra.Command {
	k := kind[api.Snapshot]{
		noun: "snapshot", name: snapshotName, find: findSnapshot,
		get: (*client.Client).GetSnapshot, remove: (*client.Client).DeleteSnapshot, complete: c.completeSnapshots,
	}
	show := inspectOf(c, k)
	show.Use, show.Aliases = "show SNAPSHOT", []string{"inspect"}
	cmd := noun("snapshot", "Manage what was kept of VMs at one moment", c.snapshotCreateCommand(), c.snapshotLsCommand(), show, rmOf(c, k))
	cmd.Aliases = []string{"snapshots"}
	return cmd
}

func snapshotName(s api.Snapshot) named { return named{s.ID, s.Name} }

func findSnapshot(ctx context.Context, server *client.Client, ref string) (api.Snapshot, error) {
	all, err := server.ListSnapshots(ctx, "")
	if err != nil {
		return api.Snapshot{}, err
	}
	found, err := pickFrom("snapshot", ref, all, snapshotName)
	return found, orList(err, "hatch snapshot ls")
}

func (c *cli) completeSnapshots(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return c.suggest(cmd, func(ctx context.Context, server *client.Client) ([]suggestion, error) {
		all, err := server.ListSnapshots(ctx, "")
		var found []suggestion
		for _, s := range all {
			found = append(found, suggestion{snapshotName(s), s.VMID})
		}
		return found, err
	})
}

func (c *cli) snapshotCreateCommand() *cobra.Command {
	var body api.CreateSnapshot
	cmd := &cobra.Command{
		Use: "create VM", Aliases: []string{"take"}, Short: "Keep a VM's memory, devices and disk of this moment, and print the snapshot's id", Args: oneArg("VM"),
		Long: `Keep a VM's memory, devices and disk of this moment, and print the snapshot's id
once they are safe on disk. The VM stands still while they are copied, and goes on;
one that sleeps or is paused stays so.`,
		Example:           "  hatch snapshot create web --name before-upgrade",
		ValidArgsFunction: c.completeVMFirst,
		RunE: func(cmd *cobra.Command, args []string) error {
			taken, err := onOne(c, cmd, args[0], "taking a snapshot of", func(ctx context.Context, server *client.Client, v api.VM) (api.Snapshot, error) {
				return server.CreateSnapshot(ctx, v.ID, body)
			})
			if err != nil {
				return fmt.Errorf("cannot take a snapshot of %s: %w", args[0], err)
			}
			return c.printOne(taken, func() { fmt.Fprintln(c.out, taken.ID) })
		},
	}
	cmd.Flags().StringVar(&body.Name, "name", "", "name, which can be given in place of the id")
	cmd.Flags().BoolVar(&body.Stop, "stop", false, "put the VM to sleep with it; not while it is paused")
	cmd.Flags().BoolVar(&body.Automatic, "automatic", false, "let it make room for later ones: it may be removed")
	return cmd
}

// onOne does something to the VM that ref means, and shows that it takes time.
func onOne[T any](c *cli, cmd *cobra.Command, ref, doing string, do func(context.Context, *client.Client, api.VM) (T, error)) (T, error) {
	var none T
	server, err := c.client()
	if err != nil {
		return none, err
	}
	v, err := findVM(cmd.Context(), server, ref)
	if err != nil {
		return none, err
	}
	defer c.progress(doing + " " + displayName(v))()
	return do(cmd.Context(), server, v)
}

func (c *cli) snapshotLsCommand() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use: "ls [VM]", Aliases: []string{"list"}, Short: "List snapshots, of one VM or all, newest first",
		Long: `List snapshots, of one VM or all, newest first. A VM that was deleted can be given
by its whole id.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage(cmd, "%s takes one VM at most; %d were given", cmd.CommandPath(), len(args))
			}
			return nil
		},
		ValidArgsFunction: c.completeVMFirst,
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := c.listSnapshots(cmd.Context(), args)
			if err != nil {
				return fmt.Errorf("cannot list snapshots: %w", err)
			}
			if quiet {
				printIDs(c, list, snapshotName)
				return nil
			}
			return printList(c, list, func(wide bool) table { return c.snapshotTable(list, wide) })
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	return cmd
}

func (c *cli) listSnapshots(ctx context.Context, ofVM []string) ([]api.Snapshot, error) {
	server, err := c.client()
	if err != nil {
		return nil, err
	}
	if len(ofVM) == 0 {
		return server.ListSnapshots(ctx, "")
	}
	id := ofVM[0]
	if !wholeVMID.MatchString(id) {
		v, err := findVM(ctx, server, id)
		if err != nil {
			return nil, err
		}
		id = v.ID
	}
	return server.ListSnapshots(ctx, id)
}

func (c *cli) snapshotTable(list []api.Snapshot, wide bool) table {
	t := table{head: []string{"ID", "NAME", "VM", "HOSTNAME", "KIND", "SIZE", "USABLE", "AGE"}}
	if wide {
		t.head = append(t.head, "IMAGE", "CPUS", "MEMORY", "DISK", "VMM", "CPU", "PARENT", "REASON")
	}
	for _, s := range list {
		needs, of := s.Compatibility, s.VMConfig
		cells := []string{s.ID, s.Name, s.VMID, of.Hostname, s.Kind, bytesText(s.SizeBytes), yesNo(needs.Usable), c.age(s.CreatedAt)}
		if wide {
			cells = append(cells, of.ImageID, strconv.Itoa(of.VCPUCount), mib(int64(of.MemMiB)), mib(int64(of.DiskMiB)),
				needs.VMM+" "+needs.VMMVersion+" "+needs.Acceleration, needs.CPU, s.ParentID, needs.Reason)
		}
		t.row(cells...)
	}
	return t
}

func (c *cli) restoreCommand() *cobra.Command {
	return &cobra.Command{
		Use: "restore VM [SNAPSHOT]", Short: "Put a VM back to a snapshot of it, the newest when none is given",
		Long: `Put a VM back to a snapshot of it, the newest when none is given, whatever it does
now. It goes on from there. What is in its memory and on its disk now is lost;
take a snapshot first to keep it.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return usage(cmd, "%s takes a VM and a snapshot, or a VM; %d were given", cmd.CommandPath(), len(args))
			}
			return nil
		},
		ValidArgsFunction: c.completeRestore,
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := onOne(c, cmd, args[0], "restoring", func(ctx context.Context, server *client.Client, v api.VM) (api.VM, error) {
				if len(args) == 1 {
					return server.RestoreVM(ctx, v.ID, "")
				}
				to, err := findSnapshot(ctx, server, args[1])
				if err != nil {
					return api.VM{}, err
				}
				return server.RestoreVM(ctx, v.ID, to.ID)
			})
			if err != nil {
				return fmt.Errorf("cannot restore %s: %w", args[0], err)
			}
			return c.showRef(args[0], v)
		},
	}
}

func (c *cli) completeRestore(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return c.completeVMs(cmd, args, word)
	case 1:
		return c.completeSnapshots(cmd, args, word)
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}
