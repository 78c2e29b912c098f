package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

func (c eventCommands) why() *cobra.Command {
	var tail int
	cmd := &cobra.Command{
		Use: "why VM", Short: "Explain the state of a VM: what happened, when, by whom, and what to do", Args: oneArg("VM"),
		Long: `Show the history of a VM: what happened, when, and by whom or by which rule. The
last line is its current state, and what to do. A deleted VM is found, too, as
long as its events are kept.`,
		ValidArgsFunction: vmKind.complete(c.connection),
		RunE: func(cmd *cobra.Command, args []string) error {
			if tail < 0 {
				return usage(cmd, "--tail takes a number of lines, or 0 for all, not %d", tail)
			}
			if err := c.explain(cmd.Context(), args[0], tail); err != nil {
				return fmt.Errorf("cannot explain %s: %w", args[0], err)
			}
			return nil
		},
	}
	cmd.Flags().IntVarP(&tail, "tail", "n", 50, "number of `lines` from the end, 0 for all")
	return cmd
}

func (c eventCommands) explain(ctx context.Context, ref string, tail int) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	found, err := findWithDeleted(ctx, server, ref)
	if err != nil {
		return err
	}
	history, err := allEvents(ctx, server, client.EventOptions{VM: found.id, PageSize: pageSize})
	if err != nil {
		return err
	}
	if c.format.structured() {
		return printList(c.printer, history, nil)
	}
	now, err := server.GetVM(ctx, found.id)
	if err != nil && !client.IsNotFound(err) {
		return err
	}
	var left []api.Snapshot // of a deleted VM
	if now.ID == "" {
		if left, err = server.ListSnapshots(ctx, found.id); err != nil {
			return err
		}
	}
	if err := c.printHistory(history, tail); err != nil {
		return err
	}
	fmt.Fprintf(c.out, "\n%s\n%s", c.verdict(found, now, left), c.lastUse(now)+standstill(ctx, server, now))
	return nil
}

// idlePercent is the use of a CPU below which a guest seems to do nothing.
const idlePercent = 0.5

// standstill returns a line about a guest that should run, and neither answers nor uses
// CPU time. That its VMM answers says nothing about that.
func standstill(ctx context.Context, server *client.Client, v api.VM) string {
	silent := slices.ContainsFunc(v.Conditions, func(c api.Condition) bool {
		return c.Type == api.ConditionAgentReady && c.Status != api.StatusTrue
	})
	if v.State != api.StateRunning || !silent {
		return ""
	}
	usage, err := server.VMMetrics(ctx, v.ID)
	if err != nil || usage.VCPU.UtilizationPercent >= idlePercent {
		return ""
	}
	return "Its guest uses no CPU time, so it may stand still. To restart it: hatch restart " + displayName(v) + "\n"
}

// findWithDeleted returns the VM that ref refers to, or a deleted one whose
// events are kept.
func findWithDeleted(ctx context.Context, server *client.Client, ref string) (named, error) {
	v, absence := findVM(ctx, server, ref)
	if absence == nil || !isAbsent(absence) {
		return vmKind.name(v), absence
	}
	var last named
	for e, err := range server.ListEvents(ctx, client.EventOptions{Types: []string{"vm.deleted"}, PageSize: pageSize}) {
		if err != nil {
			return named{}, err
		}
		if e.VMID == ref || e.VMName == ref {
			last = named{e.VMID, e.VMName}
		}
	}
	if last.id == "" {
		return named{}, absence
	}
	return last, nil
}

func (c eventCommands) printHistory(history []api.Event, tail int) error {
	var lines []api.Event
	for _, e := range history {
		// That conditions become unknown follows from the stop before it.
		follows := e.Type == "vm.condition_changed" && e.Data["to"] == api.StatusUnknown
		if c.format == formatWide || !follows {
			lines = append(lines, e)
		}
	}
	if earlier := len(lines) - tail; tail > 0 && earlier > 0 {
		fmt.Fprintf(c.out, "%d earlier events are left out; --tail 0 shows all.\n\n", earlier)
		lines = lines[earlier:]
	}
	t := table{head: []string{"TIME", "AGO", "BY", "WHAT"}}
	if c.format == formatWide {
		t.head = append(t.head, "TYPE", "REQUEST")
	}
	for _, e := range lines {
		cells := []string{c.clock(e.At), c.age(e.At), actorName(e.Actor), e.Message}
		if c.format == formatWide {
			cells = append(cells, e.Type, e.RequestID)
		}
		t.row(cells...)
	}
	return t.write(c.out, c.colour())
}

// verdict returns the state of a VM, and what to do. The zero VM is a deleted one.
func (c eventCommands) verdict(found named, v api.VM, left []api.Snapshot) string {
	name := cmp.Or(found.name, found.id)
	state := v.State
	if v.StateReason != "" {
		state += ": " + clean(v.StateReason)
	}
	switch v.State {
	case "":
		if len(left) > 0 {
			return fmt.Sprintf("%s was deleted; its snapshots are left. To see them: hatch snapshot ls %s", name, found.id)
		}
		return name + " was deleted; only its events are left."
	case api.StateRunning:
		since := ""
		if v.StartedAt != nil {
			since = " since " + c.age(*v.StartedAt)
		}
		if v.StateReason != "" { // why it still runs
			since += " (" + clean(v.StateReason) + ")"
		}
		return name + " is running" + since + unmetConditions(v)
	case api.StatePaused:
		return fmt.Sprintf("%s is %s. To resume it: hatch resume %s", name, state, name)
	case api.StateSnapshotted:
		return fmt.Sprintf("%s is %s. To continue it: hatch wake %s", name, state, name)
	case api.StateStopped:
		return fmt.Sprintf("%s is %s. To start it: hatch start %s", name, state, name)
	case api.StateError:
		return fmt.Sprintf("%s is in %s. See its console: hatch logs %s; then start it again: hatch start %s", name, state, name, name)
	}
	return fmt.Sprintf("%s is %s. To wait for it: hatch wait %s", name, state, name)
}

// unmetConditions completes the sentence about a running VM.
func unmetConditions(v api.VM) string {
	var unmet []string
	see := "See its console: hatch logs "
	for _, cond := range v.Conditions {
		lacks := cond.Reason == "Disabled" || cond.Reason == "Absent" // on purpose, unless it was to do something
		if cond.Type == api.ConditionCloudInit {
			lacks = lacks && v.UserData == ""
			if cond.Reason == "Failed" || cond.Reason == "Degraded" {
				see = "See cloud-init's log: hatch logs --source cloud-init "
			}
		}
		if lacks || cond.Status == api.StatusTrue && cond.Message == "" {
			continue
		}
		unmet = append(unmet, clean(cmp.Or(cond.Message, cond.Type+" is "+cond.Status)))
	}
	if len(unmet) == 0 {
		return ", and all is well."
	}
	return ", but " + strings.Join(unmet, "; ") + ". " + see + displayName(v)
}
