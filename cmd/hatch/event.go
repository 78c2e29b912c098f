package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// usualSince is how far back events are listed when nothing is said.
const usualSince = 24 * time.Hour

func (c *cli) eventsCommand() *cobra.Command {
	var follow bool
	var since string
	var types []string
	cmd := &cobra.Command{
		Use: "events [VM]", Short: "Show what has happened, to one VM or to all", Args: atMostOneArg("VM"),
		Long: `Show what has happened, oldest first: of one VM all that is kept, of all VMs
the last 24 hours. With -f, show what comes from now on, and connect again when
the connection is lost; nothing is missed.`,
		Example:           "  hatch events -f --type vm.state_changed\n  hatch events web --since 2h -o jsonl",
		ValidArgsFunction: c.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if follow && c.format == formatYAML {
				return usage(cmd, "--follow writes table, wide, json or jsonl")
			}
			opts := client.EventOptions{Types: types, PageSize: pageSize}
			var err error
			if opts.Since, err = c.sinceTime(since); err != nil {
				return usage(cmd, "%s", err)
			}
			if err := c.events(cmd.Context(), args, opts, follow); err != nil {
				return fmt.Errorf("cannot show events: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes")
	cmd.Flags().StringVar(&since, "since", "", "only events since a `time`: how long ago, as 2h, or RFC 3339")
	cmd.Flags().StringArrayVar(&types, "type", nil, "only events of a `type`, as vm.operation or vm.* (repeatable)")
	return cmd
}

func atMostOneArg(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return usage(cmd, "%s takes one %s at most; %d were given", cmd.CommandPath(), what, len(args))
		}
		return nil
	}
}

// sinceTime reads how long ago, or a time; "" is the zero time.
func (c *cli) sinceTime(text string) (time.Time, error) {
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
	return c.now().Add(-ago), nil
}

func (c *cli) events(ctx context.Context, refs []string, opts client.EventOptions, follow bool) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	if len(refs) == 1 {
		found, err := findPresentOrPast(ctx, server, refs[0])
		if err != nil {
			return err
		}
		opts.VM = found.id
	}
	if follow {
		return c.followEvents(ctx, server, opts)
	}
	if opts.VM == "" && opts.Since.IsZero() {
		opts.Since = c.now().Add(-usualSince)
	}
	list, err := allEvents(ctx, server, opts)
	if err != nil {
		return err
	}
	return printList(c, list, func(wide bool) table { return c.eventTable(list, wide) })
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

func (c *cli) eventTable(list []api.Event, wide bool) table {
	t := table{head: []string{"TIME", "VM", "TYPE", "BY", "WHAT"}}
	if wide {
		t.head = append(t.head, "SEQ", "VM ID", "REQUEST")
	}
	for _, e := range list {
		t.row(c.eventCells(e, wide)...)
	}
	return t
}

func (c *cli) eventCells(e api.Event, wide bool) []string {
	name := e.VMName
	if name == "" {
		name = e.VMID
	}
	cells := []string{c.clock(e.At), name, e.Type, actorName(e.Actor), e.Message}
	if wide {
		cells = append(cells, fmt.Sprint(e.Seq), e.VMID, e.RequestID)
	}
	return cells
}

// clock writes a time as it is here.
func (c *cli) clock(t time.Time) string { return t.In(c.now().Location()).Format(time.DateTime) }

func actorName(a api.Actor) string {
	switch a.Kind {
	case api.ActorKey:
		return "key " + a.Name
	case api.ActorGuest:
		return "the guest"
	case api.ActorRule:
		return "rule " + a.Name
	}
	return a.Kind
}

// Pauses between tries to connect again.
const (
	firstPause = 250 * time.Millisecond
	lastPause  = 10 * time.Second
)

// followEvents writes events as they come. It ends with ctx, or when the
// server refuses.
func (c *cli) followEvents(ctx context.Context, server *client.Client, opts client.EventOptions) error {
	if opts.Since.IsZero() {
		opts.After = client.FromNow
	}
	pause := firstPause
	for {
		for e, err := range server.FollowEvents(ctx, &opts) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if refused(err) {
				return err
			}
			if err != nil {
				c.tellLost(err, pause)
				break
			}
			pause = firstPause
			if err := c.writeEvent(e); err != nil {
				return err
			}
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
		pause = min(2*pause, lastPause)
	}
}

// refused reports whether the server answered that it will not do this, so
// that it is of no use to ask again.
func refused(err error) bool {
	var said *client.Error
	return errors.As(err, &said) && said.Problem.Status < http.StatusInternalServerError && said.Problem.Status != http.StatusTooManyRequests
}

// tellLost says once that events do not come any more.
func (c *cli) tellLost(err error, pause time.Duration) {
	if pause == firstPause {
		fmt.Fprintf(c.err, "hatch: connecting again: %s\n", clean(err.Error()))
	}
}

func (c *cli) writeEvent(e api.Event) error {
	if c.format.structured() {
		return writeJSON(c.out, e, false)
	}
	cells := cleaned(c.eventCells(e, c.format == formatWide))
	fmt.Fprintf(c.out, "%s   %-20s   %-20s   %-12s   %s", cells[0], cells[1], cells[2], cells[3], cells[4])
	for _, cell := range cells[5:] {
		fmt.Fprint(c.out, "   "+cell)
	}
	_, err := fmt.Fprintln(c.out)
	return err
}
