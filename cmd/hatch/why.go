package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

func (c *cli) whyCommand() *cobra.Command {
	var tail int
	cmd := &cobra.Command{
		Use: "why VM", Short: "Tell what happened to a VM, when, by whom, and what to do", Args: oneArg("VM"),
		Long: `Tell the story of a VM: what happened, when, and by whom or by which rule. The
last line says how it is now, and what to do. A VM that was deleted is found, too,
as long as its events are kept.`,
		ValidArgsFunction: c.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if tail < 0 {
				return usage(cmd, "--tail takes a number of lines, or 0 for all, not %d", tail)
			}
			if err := c.why(cmd.Context(), args[0], tail); err != nil {
				return fmt.Errorf("cannot tell about %s: %w", args[0], err)
			}
			return nil
		},
	}
	cmd.Flags().IntVarP(&tail, "tail", "n", 50, "`lines` from the end, 0 for all")
	return cmd
}

func (c *cli) why(ctx context.Context, ref string, tail int) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	found, err := findPresentOrPast(ctx, server, ref)
	if err != nil {
		return err
	}
	story, err := allEvents(ctx, server, client.EventOptions{VM: found.id, PageSize: pageSize})
	if err != nil {
		return err
	}
	if c.format.structured() {
		return printList(c, story, nil)
	}
	now, err := server.GetVM(ctx, found.id)
	if err != nil && !client.IsNotFound(err) {
		return err
	}
	var left []api.Snapshot // of a VM that is gone
	if now.ID == "" {
		if left, err = server.ListSnapshots(ctx, found.id); err != nil {
			return err
		}
	}
	if err := c.tellStory(story, tail); err != nil {
		return err
	}
	fmt.Fprintf(c.out, "\n%s\n", c.verdict(found, now, left))
	return nil
}

// findPresentOrPast returns the VM that ref means, or one that was deleted and
// is told of still.
func findPresentOrPast(ctx context.Context, server *client.Client, ref string) (named, error) {
	v, absence := findVM(ctx, server, ref)
	if absence == nil || !isAbsent(absence) {
		return vmName(v), absence
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

func (c *cli) tellStory(story []api.Event, tail int) error {
	var lines []api.Event
	for _, e := range story {
		if c.format == formatWide || !tellsNothing(e) {
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

// tellsNothing reports whether an event follows from the one before it: that
// nothing is known any more of a guest that does not run.
func tellsNothing(e api.Event) bool {
	return e.Type == "vm.condition_changed" && e.Data["to"] == api.StatusUnknown
}

// verdict says how a VM is now, and what to do; the zero VM is gone.
func (c *cli) verdict(found named, v api.VM, left []api.Snapshot) string {
	name := found.name
	if name == "" {
		name = found.id
	}
	state := v.State
	if v.StateReason != "" {
		state += ": " + clean(v.StateReason)
	}
	switch v.State {
	case "":
		if len(left) > 0 {
			return fmt.Sprintf("%s was deleted; its snapshots are left. To see them: hatch snapshot ls %s", name, found.id)
		}
		return name + " was deleted; nothing is left of it but this story."
	case api.StateRunning:
		return name + " is running" + c.since(v) + missing(v)
	case api.StatePaused:
		return fmt.Sprintf("%s is %s. To let it run on: hatch resume %s", name, state, name)
	case api.StateSnapshotted:
		return fmt.Sprintf("%s is %s. To let it go on: hatch wake %s", name, state, name)
	case api.StateStopped:
		return fmt.Sprintf("%s is %s. To start it: hatch start %s", name, state, name)
	case api.StateError:
		return fmt.Sprintf("%s is in %s. See its console: hatch logs %s; then start it again: hatch start %s", name, state, name, name)
	}
	return fmt.Sprintf("%s is %s. To wait for it: hatch wait %s", name, state, name)
}

func (c *cli) since(v api.VM) string {
	if v.StartedAt == nil {
		return ""
	}
	return " since " + c.age(*v.StartedAt)
}

// missing says what a running VM's guest lacks.
func missing(v api.VM) string {
	var faults []string
	for _, cond := range v.Conditions {
		if cond.Status == api.StatusTrue || cond.Reason == "Disabled" || cond.Reason == "Absent" {
			continue
		}
		words := cond.Message
		if words == "" {
			words = cond.Type + " is " + cond.Status
		}
		faults = append(faults, clean(words))
	}
	if len(faults) == 0 {
		return ", and all is well."
	}
	return ", but " + strings.Join(faults, "; ") + ". See its console: hatch logs " + displayName(v)
}
