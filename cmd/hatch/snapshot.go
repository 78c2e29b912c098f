package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

var snapshotKind = kind[api.Snapshot]{
	noun: "snapshot", ls: "hatch snapshot ls",
	list: func(server *client.Client, ctx context.Context) ([]api.Snapshot, error) {
		return server.ListSnapshots(ctx, "")
	},
	name:  func(s api.Snapshot) named { return named{s.ID, s.Name} },
	about: func(s api.Snapshot) string { return s.VMID },
}

// snapshotCommands are hatch snapshot and hatch restore.
type snapshotCommands struct {
	*printer
	*connection
}

func (c snapshotCommands) command() *cobra.Command {
	common := nounCommands[api.Snapshot]{
		printer: c.printer, connection: c.connection, kind: snapshotKind,
		get: (*client.Client).GetSnapshot, remove: (*client.Client).DeleteSnapshot,
	}
	show := common.inspectCommand()
	show.Use, show.Aliases = "show SNAPSHOT", []string{"inspect"}
	return noun("snapshot", "Manage snapshots", c.createCommand(), c.lsCommand(), show, common.rmCommand())
}

func (c snapshotCommands) createCommand() *cobra.Command {
	var body api.CreateSnapshot
	cmd := &cobra.Command{
		Use: "create VM", Aliases: []string{"take"}, Short: "Save the memory, devices and disk of a VM, and print the snapshot's id", Args: oneArg("VM"),
		Long: `Save the memory, devices and disk of a VM, and print the snapshot's id once they
are durable on disk. The VM is paused while they are copied, then resumed; one
that sleeps or is paused stays so.`,
		Example:           "  hatch snapshot create web --name before-upgrade",
		ValidArgsFunction: vmKind.completeFirst(c.connection),
		RunE: func(cmd *cobra.Command, args []string) error {
			snap, err := onVM(c.printer, c.connection, cmd.Context(), args[0], "taking a snapshot of", func(server *client.Client, v api.VM) (api.Snapshot, error) {
				return server.CreateSnapshot(cmd.Context(), v.ID, body)
			})
			if err != nil {
				return fmt.Errorf("cannot take a snapshot of %s: %w", args[0], err)
			}
			return c.printLine(snap, snap.ID)
		},
	}
	cmd.Flags().StringVar(&body.Name, "name", "", "name, which can be used instead of the id")
	cmd.Flags().BoolVar(&body.Stop, "stop", false, "put the VM to sleep with it; not while it is paused")
	cmd.Flags().BoolVar(&body.Automatic, "automatic", false, "let hatchd remove it to make room for later ones")
	return cmd
}

func (c snapshotCommands) lsCommand() *cobra.Command {
	f := &listFlags{}
	cmd := &cobra.Command{
		Use: "ls [VM]", Aliases: []string{"list"}, Short: "List snapshots, of one VM or all, newest first", Args: upToOneArg("VM"),
		Long: `List snapshots, of one VM or all, newest first. A deleted VM can be given by its
full id.`,
		ValidArgsFunction: vmKind.completeFirst(c.connection),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := arranged[api.Snapshot](nil, f); err != nil { // before the first request
				return err
			}
			list, err := c.list(cmd.Context(), args)
			if err != nil {
				return fmt.Errorf("cannot list snapshots: %w", err)
			}
			return printListed(c.printer, f, list, snapshotKind.name, c.table)
		},
	}
	f.add(c.printer, cmd)
	return cmd
}

func (c snapshotCommands) list(ctx context.Context, ofVM []string) ([]api.Snapshot, error) {
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

func (c snapshotCommands) table(list []api.Snapshot, wide bool) table {
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

func (c snapshotCommands) restore() *cobra.Command {
	return &cobra.Command{
		Use: "restore VM [SNAPSHOT]", Short: "Put a VM back to one of its snapshots, the newest by default",
		Long: `Put a VM back to one of its snapshots, the newest by default, in any state. It
continues from there. Its current memory and disk are lost; take a snapshot first
to keep them.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return usage(cmd, "%s takes a VM and a snapshot, or a VM; %d were given", cmd.CommandPath(), len(args))
			}
			return nil
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return snapshotKind.complete(c.connection)(cmd, args, word)
			}
			return vmKind.completeFirst(c.connection)(cmd, args, word)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := onVM(c.printer, c.connection, cmd.Context(), args[0], "restoring", func(server *client.Client, v api.VM) (api.VM, error) {
				if len(args) == 1 {
					return server.RestoreVM(cmd.Context(), v.ID, "")
				}
				snap, err := snapshotKind.find(cmd.Context(), server, args[1])
				if err != nil {
					return api.VM{}, err
				}
				return server.RestoreVM(cmd.Context(), v.ID, snap.ID)
			})
			if err != nil {
				return fmt.Errorf("cannot restore %s: %w", args[0], err)
			}
			return c.printLine(v, args[0])
		},
	}
}
