package main

import (
	"bufio"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

func (c vmCommands) pruneCommand() *cobra.Command {
	var force bool
	f := &listFlags{}
	cmd := &cobra.Command{
		Use: "prune", Short: "Delete all VMs that are stopped or in error, and their disks", Args: noArgs,
		Long: `Delete all VMs that are stopped or in error, and their disks. Sleeping and paused
VMs stay. It asks first, or needs --force where there is no terminal.`,
		Example: "  hatch prune --filter label=team=a",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !force && !c.inTTY {
				return usage(cmd, "there is no terminal to ask on; --force deletes without a question")
			}
			server, err := c.client()
			if err != nil {
				return err
			}
			vms, err := allVMs(cmd.Context(), server, listOptions(f.filters))
			if err == nil {
				vms, err = arranged(vms, f)
			}
			if err != nil {
				return fmt.Errorf("cannot list VMs: %w", err)
			}
			var ids, names []string
			for _, v := range slices.DeleteFunc(vms, func(v api.VM) bool { return !isOff(v) }) {
				ids, names = append(ids, v.ID), append(names, clean(displayName(v)))
			}
			if len(ids) == 0 {
				fmt.Fprintln(c.err, "no VM is stopped or in error")
			} else if !force {
				fmt.Fprintf(c.err, "%d VMs and their disks are deleted: %s\nContinue? [y/N] ", len(ids), strings.Join(names, ", "))
				answer, _ := bufio.NewReader(c.in).ReadString('\n')
				if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
					return errors.New("nothing was deleted")
				}
			}
			return forEach(c.printer, cmd, ids, "remove", func(r *results, id string) error {
				v, err := server.GetVM(cmd.Context(), id) // it may have been started meanwhile
				switch {
				case client.IsNotFound(err):
					return nil
				case err != nil:
					return err
				case !isOff(v):
					return fmt.Errorf("it is %s now", v.State)
				}
				if err := removeVM(cmd.Context(), c.printer, server, v); err != nil {
					return err
				}
				return r.addDeleted(vmKind.name(v), id)
			})
		},
	}
	cmd.Flags().StringArrayVar(&f.filters, "filter", nil, "only VMs with `FIELD=VALUE` and so on, as for hatch ls (repeatable)")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	return cmd
}

// isOff reports whether a VM has no machine and no saved memory.
func isOff(v api.VM) bool { return v.State == api.StateStopped || v.State == api.StateError }
