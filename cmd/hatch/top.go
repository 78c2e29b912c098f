package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

const (
	defaultInterval  = 2 * time.Second
	minInterval      = 100 * time.Millisecond
	parallelRequests = 8
)

// topCommand is hatch top.
type topCommand struct {
	*printer
	*connection
}

func (c topCommand) command() *cobra.Command {
	var all, noStream bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use: "top [VM...]", Aliases: []string{"stats"}, Short: "Show the resource usage of VMs, live",
		Long: `Show the resource usage of the running VMs, or of the given ones. On a terminal
the table is live, until ctrl-C; elsewhere, with --no-stream or as JSON it is
printed once.

CPU% is of one CPU of the host. MEM is the memory used in the guest and its size,
HOST MEM the memory that the VM uses on the host. Network and disk are totals
since the start of the VM: received / sent, read / written.`,
		Example:           "  hatch top\n  hatch top web --no-stream -o json",
		ValidArgsFunction: vmKind.complete(c.connection),
		RunE: func(cmd *cobra.Command, refs []string) error {
			if interval < minInterval {
				return usage(cmd, "--interval takes %s at least, not %s", minInterval, interval)
			}
			server, err := c.client()
			if err != nil {
				return err
			}
			if err := c.show(cmd.Context(), usageQuery{server, refs, all}, interval, noStream); err != nil {
				return fmt.Errorf("cannot show the usage of VMs: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "VMs that are not running, too")
	cmd.Flags().BoolVar(&noStream, "no-stream", false, "print the table once")
	cmd.Flags().DurationVar(&interval, "interval", defaultInterval, "time between two updates")
	return cmd
}

func (c topCommand) show(ctx context.Context, q usageQuery, interval time.Duration, once bool) error {
	rows, err := q.rows(ctx)
	if err != nil {
		return err
	}
	if c.outTTY && !once && !c.format.structured() && c.env("TERM") != "dumb" {
		return c.live(ctx, q, rows, interval)
	}
	list := make([]api.Metrics, 0, len(rows))
	var errs []error
	for _, r := range rows {
		if r.err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", displayName(r.vm), r.err))
			continue
		}
		list = append(list, r.metrics)
	}
	return errors.Join(printList(c.printer, list, func(wide bool) table { return topTable(rows, wide) }), errors.Join(errs...))
}

// usageQuery says which VMs to show.
type usageQuery struct {
	server *client.Client
	refs   []string // none: the running VMs
	all    bool     // none in refs: all VMs
}

// usageRow is one VM and its metrics, or why they are not known.
type usageRow struct {
	vm      api.VM
	metrics api.Metrics
	err     error
}

// rows gets the VMs and the metrics of each.
func (q usageQuery) rows(ctx context.Context) ([]usageRow, error) {
	vms, err := q.vms(ctx)
	if err != nil {
		return nil, err
	}
	rows := make([]usageRow, len(vms))
	var each errgroup.Group
	each.SetLimit(parallelRequests)
	for i, v := range vms {
		each.Go(func() error {
			m, err := q.server.VMMetrics(ctx, v.ID)
			rows[i] = usageRow{v, m, err}
			return nil
		})
	}
	_ = each.Wait() // each row has its own error
	kept := rows[:0]
	for _, r := range rows {
		if !client.IsNotFound(r.err) { // deleted in the meantime
			kept = append(kept, r)
		}
	}
	return kept, ctx.Err()
}

// statesWithMachine are the states of VMs that may use resources.
var statesWithMachine = []string{api.StateStarting, api.StateRunning, api.StateStopping, api.StatePaused}

func (q usageQuery) vms(ctx context.Context) ([]api.VM, error) {
	vms, err := allVMs(ctx, q.server, client.ListOptions{})
	if err != nil {
		return nil, err
	}
	var found []api.VM
	for _, ref := range q.refs {
		v, err := pickFrom(vmKind, ref, vms)
		if err != nil {
			return nil, err
		}
		found = append(found, v)
	}
	if len(q.refs) > 0 {
		return found, nil
	}
	for _, v := range vms {
		if q.all || slices.Contains(statesWithMachine, v.State) {
			found = append(found, v)
		}
	}
	return found, nil
}

func topTable(rows []usageRow, wide bool) table {
	t := table{head: []string{"NAME", "ID", "STATE", "CPU%", "MEM", "HOST MEM", "NET I/O", "BLOCK I/O", "UPTIME"}}
	if wide {
		t.head = append(t.head, "CPUS", "LOAD", "DISK", "HOST DISK")
	}
	for _, r := range rows {
		if r.err == nil {
			t.row(topCells(r.vm, r.metrics, wide)...)
			continue
		}
		cells := make([]string, len(t.head)) // empty: unknown
		copy(cells, []string{r.vm.Name, r.vm.ID, r.vm.State})
		t.row(cells...)
	}
	return t
}

func topCells(v api.VM, m api.Metrics, wide bool) []string {
	cells := []string{v.Name, v.ID, m.State, "", "", "", "", "", ""}
	if used, total := m.Memory.GuestUsedBytes, m.Memory.GuestTotalBytes; used != nil && total != nil {
		cells[4] = pair(*used, *total)
	}
	if m.CountersSince != nil {
		copy(cells[3:], []string{fmt.Sprintf("%.1f%%", m.VCPU.UtilizationPercent)})
		copy(cells[5:], []string{
			bytesText(m.Memory.HostResidentBytes), pair(m.Net.RxBytes, m.Net.TxBytes), pair(m.Block.ReadBytes, m.Block.WriteBytes),
			spanText(time.Duration(m.UptimeSeconds) * time.Second),
		})
	}
	if wide {
		load, disk := "", ""
		if l := m.Load; l != nil {
			load = fmt.Sprintf("%.2f %.2f %.2f", l.Avg1, l.Avg5, l.Avg15)
		}
		if d := m.Disk; d != nil {
			disk = pair(d.UsedBytes, d.TotalBytes)
		}
		cells = append(cells, strconv.Itoa(m.VCPUCount), load, disk, bytesText(m.HostDiskBytes))
	}
	return cells
}

func pair[T int64 | uint64](a, b T) string { return bytesText(a) + " / " + bytesText(b) }
