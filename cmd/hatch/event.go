package main

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// reconnectTimeout is how long events -f tries to connect again: a restart of
// hatchd, or of its host, takes less.
const reconnectTimeout = 5 * time.Minute

// defaultSince is how far back the events of all VMs are listed.
const defaultSince = 24 * time.Hour

// eventCommands are hatch events and hatch why.
type eventCommands struct {
	*printer
	*connection
}

func (c eventCommands) events() *cobra.Command {
	var follow bool
	var since string
	var types []string
	cmd := &cobra.Command{
		Use: "events [VM]", Short: "Show events, of one VM or of all", Args: upToOneArg("VM"),
		Long: `Show events, oldest first: of one VM all that are kept, of all VMs those of the
last 24 hours. With -f, show new events as they happen, and reconnect if the
connection is lost; an event log.gap stands for events that were removed before
they could be read. It gives up if there is no server at first, or none for 5
minutes.`,
		Example:           "  hatch events -f --type vm.state_changed\n  hatch events web --since 2h -o jsonl",
		ValidArgsFunction: vmKind.complete(c.connection),
		RunE: func(cmd *cobra.Command, args []string) error {
			if follow && c.format == formatYAML {
				return usage(cmd, "--follow writes table, wide, json or jsonl")
			}
			opts := client.EventOptions{Types: types, PageSize: pageSize}
			var err error
			if opts.Since, err = sinceTime(since, c.now()); err != nil {
				return usage(cmd, "%s", err)
			}
			if err := c.show(cmd.Context(), args, opts, follow); err != nil {
				return fmt.Errorf("cannot show events: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "show new events as they happen")
	cmd.Flags().StringVar(&since, "since", "", "only events since a `time`: how long ago, as 2h, or RFC 3339")
	cmd.Flags().StringArrayVar(&types, "type", nil, "only events of a `type`, as vm.operation or vm.* (repeatable)")
	return cmd
}

// sinceTime reads a duration before now, or a time; "" is the zero time.
func sinceTime(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if at, err := time.Parse(time.RFC3339, text); err == nil {
		return at, nil
	}
	ago, err := time.ParseDuration(text)
	if err != nil || ago < 0 {
		return time.Time{}, fmt.Errorf("--since takes how long ago, as 90m or 24h, or a time as 2026-01-02T15:04:05Z, not %q", text)
	}
	return now.Add(-ago), nil
}

func (c eventCommands) show(ctx context.Context, refs []string, opts client.EventOptions, follow bool) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	if len(refs) == 1 {
		found, err := findWithDeleted(ctx, server, refs[0])
		if err != nil {
			return err
		}
		opts.VM = found.id
	}
	if follow {
		return c.follow(ctx, server, opts)
	}
	if opts.VM == "" && opts.Since.IsZero() {
		opts.Since = c.now().Add(-defaultSince)
	}
	list, err := allEvents(ctx, server, opts)
	if err != nil {
		return err
	}
	return printList(c.printer, list, func(wide bool) table {
		t := table{head: []string{"TIME", "VM", "TYPE", "BY", "WHAT"}}
		if wide {
			t.head = append(t.head, "SEQ", "VM ID", "REQUEST")
		}
		for _, e := range list {
			t.row(c.cells(e, wide)...)
		}
		return t
	})
}

func allEvents(ctx context.Context, server *client.Client, opts client.EventOptions) ([]api.Event, error) {
	var list []api.Event
	for e, err := range server.ListEvents(ctx, opts) {
		if err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	return list, nil
}

func (c eventCommands) cells(e api.Event, wide bool) []string {
	cells := []string{c.clock(e.At), cmp.Or(e.VMName, e.VMID), e.Type, actorName(e.Actor), e.Message}
	if wide {
		cells = append(cells, fmt.Sprint(e.Seq), e.VMID, e.RequestID)
	}
	return cells
}

func actorName(a api.Actor) string {
	switch a.Kind {
	case api.ActorKey:
		return "key " + a.Name
	case api.ActorUser:
		return "user " + a.Name
	case api.ActorLocal:
		return a.Name
	case api.ActorGuest:
		return "the guest"
	case api.ActorRule:
		return "rule " + a.Name
	}
	return a.Kind
}

// follow writes events as they happen, until ctx is done or the server refuses.
func (c eventCommands) follow(ctx context.Context, server *client.Client, opts client.EventOptions) error {
	if opts.Since.IsZero() {
		opts.After = client.FromNow
	}
	opts.GiveUp = reconnectTimeout
	lost := func(err error) { fmt.Fprintf(c.err, "hatch: connecting again: %s\n", clean(err.Error())) }
	for e, err := range server.StreamEvents(ctx, &opts, lost) {
		if err != nil {
			return err
		}
		if err := c.write(e); err != nil {
			return err
		}
	}
	return nil
}

func (c eventCommands) write(e api.Event) error {
	switch {
	case c.format == formatTemplate:
		return c.printTemplate(e)
	case c.format.structured():
		return writeJSON(c.out, e, false)
	}
	cells := cleaned(c.cells(e, c.format == formatWide))
	fmt.Fprintf(c.out, "%s   %-20s   %-20s   %-12s   %s", cells[0], cells[1], cells[2], cells[3], cells[4])
	for _, cell := range cells[5:] {
		fmt.Fprint(c.out, "   "+cell)
	}
	_, err := fmt.Fprintln(c.out)
	return err
}
