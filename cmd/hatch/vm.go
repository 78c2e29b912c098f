package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

func (c *cli) lsCommand() *cobra.Command {
	var quiet, all bool
	var filters []string
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"ps", "list"}, Short: "List VMs, newest first", Args: noArgs,
		Example: "  hatch ls --filter state=running --filter label=team=a",
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts, err := listOptions(cmd, filters)
			if err != nil {
				return err
			}
			server, err := c.client()
			if err != nil {
				return err
			}
			vms, err := allVMs(cmd.Context(), server, opts)
			if err != nil {
				return fmt.Errorf("cannot list VMs: %w", err)
			}
			if quiet {
				printIDs(c, vms, vmName)
				return nil
			}
			return printList(c, vms, func(wide bool) table { return c.vmTable(vms, wide) })
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "as docker has it; stopped VMs are listed anyway")
	cmd.Flags().StringArrayVarP(&filters, "filter", "f", nil, "state=STATE, name=NAME or label=KEY=VALUE (repeatable)")
	return cmd
}

func listOptions(cmd *cobra.Command, filters []string) (client.ListOptions, error) {
	opts := client.ListOptions{Labels: map[string]string{}}
	for _, f := range filters {
		key, value, _ := strings.Cut(f, "=")
		switch {
		case key == "state" && value != "":
			opts.State = value
		case key == "name" && value != "":
			opts.Name = value
		case key == "label" && strings.Contains(value, "="):
			label, want, _ := strings.Cut(value, "=")
			opts.Labels[label] = want
		default:
			return opts, usage(cmd, "--filter takes state=STATE, name=NAME or label=KEY=VALUE, not %q", f)
		}
	}
	return opts, nil
}

func printIDs[T any](c *cli, things []T, name func(T) named) {
	for _, t := range things {
		fmt.Fprintln(c.out, clean(name(t).id))
	}
}

func (c *cli) vmTable(vms []api.VM, wide bool) table {
	t := table{head: []string{"ID", "NAME", "STATE", "IMAGE", "CPUS", "MEMORY", "ADDRESS", "SSH", "AGE"}}
	if wide {
		t.head = append(t.head, "READY", "DISK", "MAC", "TAP", "VMM", "TEMPLATE", "LABELS", "REASON")
	}
	for _, v := range vms {
		cells := []string{v.ID, v.Name, v.State, v.ImageID, strconv.Itoa(v.VCPUCount), mib(int64(v.MemMiB)), v.GuestIP, port(v.SSHPort), c.age(v.CreatedAt)}
		if wide {
			cells = append(cells, readiness(v), mib(int64(v.DiskMiB)), v.GuestMAC, v.TapName, v.VMM, v.TemplateID, labels(v.Labels), v.StateReason)
		}
		t.row(cells...)
	}
	return t
}

func port(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

func labels(m map[string]string) string {
	pairs := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		pairs = append(pairs, k+"="+m[k])
	}
	return strings.Join(pairs, ",")
}

// readiness is yes, or the first condition that does not hold.
func readiness(v api.VM) string {
	if len(v.Conditions) == 0 {
		return ""
	}
	for _, cond := range v.Conditions {
		if cond.Status != api.StatusTrue {
			return "no: " + cond.Type
		}
	}
	return "yes"
}

func (c *cli) inspectCommand() *cobra.Command {
	return &cobra.Command{
		Use: "inspect VM...", Short: "Show all there is to know of VMs, as JSON", Args: someArgs("VM"),
		ValidArgsFunction: c.completeVMs,
		RunE: func(cmd *cobra.Command, refs []string) error {
			return c.each(cmd, refs, "inspect", onVM(func(ctx context.Context, server *client.Client, v api.VM) (api.VM, error) {
				return server.GetVM(ctx, v.ID)
			}), func(_ string, v api.VM) error { return c.printInspected(cmd, v) })
		},
	}
}

// printInspected prints the API's own body; JSON unless something else was asked for.
func (c *cli) printInspected(cmd *cobra.Command, object any) error {
	if !cmd.Flags().Changed("output") {
		return writeJSON(c.out, object, true)
	}
	return c.printOne(object, func() { c.printFields(object) })
}

// refOp does something to the VM that a reference means.
type refOp func(ctx context.Context, server *client.Client, ref string) (api.VM, error)

// onVM is an op on the VM itself, once it is found.
func onVM(op func(context.Context, *client.Client, api.VM) (api.VM, error)) refOp {
	return func(ctx context.Context, server *client.Client, ref string) (api.VM, error) {
		v, err := findVM(ctx, server, ref)
		if err != nil {
			return v, err
		}
		return op(ctx, server, v)
	}
}

// each runs op on every VM named and shows what became of it. One that fails
// does not keep the others from being done.
func (c *cli) each(cmd *cobra.Command, refs []string, verb string, op refOp, show func(ref string, v api.VM) error) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	failed := false
	for _, ref := range refs {
		v, err := op(cmd.Context(), server, ref)
		if err == nil {
			err = show(ref, v)
		}
		if err != nil && cmd.Context().Err() != nil {
			return err
		}
		if err != nil {
			c.report(fmt.Errorf("cannot %s %s: %w", verb, ref, err))
			failed = true
		}
	}
	if failed {
		return exitError(exitOwn)
	}
	return nil
}

// showRef prints what docker prints, the reference as given, or the VM's body.
func (c *cli) showRef(ref string, v api.VM) error {
	return c.printOne(v, func() { fmt.Fprintln(c.out, clean(ref)) })
}

type vmCall func(*client.Client, context.Context, string) (api.VM, error)

// vmVerb makes a command that changes the state of VMs.
func (c *cli) vmVerb(verb, doing, short string, call vmCall) *cobra.Command {
	return &cobra.Command{
		Use: verb + " VM...", Short: short, Args: someArgs("VM"),
		ValidArgsFunction: c.completeVMs,
		RunE: func(cmd *cobra.Command, refs []string) error {
			return c.each(cmd, refs, verb, onVM(func(ctx context.Context, server *client.Client, v api.VM) (api.VM, error) {
				defer c.progress(doing + " " + v.ID)()
				return call(server, ctx, v.ID)
			}), c.showRef)
		},
	}
}

func (c *cli) startCommand() *cobra.Command {
	return c.vmVerb("start", "starting", "Start stopped VMs", (*client.Client).StartVM)
}

func (c *cli) stopCommand() *cobra.Command {
	return c.vmVerb("stop", "stopping", "Shut VMs down, by force after the server's timeout", (*client.Client).StopVM)
}

func (c *cli) restartCommand() *cobra.Command {
	return c.vmVerb("restart", "restarting", "Stop VMs and start them again", (*client.Client).RestartVM)
}

func (c *cli) pauseCommand() *cobra.Command {
	return c.vmVerb("pause", "pausing", "Halt the CPUs of VMs", (*client.Client).PauseVM)
}

func (c *cli) resumeCommand() *cobra.Command {
	cmd := c.vmVerb("resume", "resuming", "Let paused VMs run on", (*client.Client).ResumeVM)
	cmd.Aliases = []string{"unpause"}
	return cmd
}

func (c *cli) rmCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm VM...", Aliases: []string{"delete"}, Short: "Delete VMs, disks and all", Args: someArgs("VM"),
		Long:              "Delete VMs, disks and all. A VM that is not stopped is deleted with -f only.\nWith -f, one that is not there is no error.",
		ValidArgsFunction: c.completeVMs,
		RunE: func(cmd *cobra.Command, refs []string) error {
			return c.each(cmd, refs, "remove", func(ctx context.Context, server *client.Client, ref string) (api.VM, error) {
				v, err := findVM(ctx, server, ref)
				if force && isAbsent(err) {
					return v, nil
				}
				if err != nil {
					return v, err
				}
				if !force && v.State != api.StateStopped && v.State != api.StateError {
					return v, hint(fmt.Errorf("it is %s", v.State), "hatch rm -f %s, or stop it first", v.ID)
				}
				return v, c.remove(ctx, server, v)
			}, c.showRemoved)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also when it runs")
	return cmd
}

func (c *cli) remove(ctx context.Context, server *client.Client, v api.VM) error {
	defer c.progress("removing " + v.ID)()
	if err := server.DeleteVM(ctx, v.ID); err != nil {
		return err
	}
	c.forgetHost(v.ID)
	return nil
}

func (c *cli) showRemoved(ref string, _ api.VM) error {
	return c.printOne(api.Deleted{Status: "deleted"}, func() { fmt.Fprintln(c.out, clean(ref)) })
}
