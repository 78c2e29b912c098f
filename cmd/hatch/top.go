package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

const (
	usualInterval = 2 * time.Second
	leastInterval = 100 * time.Millisecond
	// metricsAtOnce bounds the requests that are under way.
	metricsAtOnce = 8
)

func (c *cli) topCommand() *cobra.Command {
	var all, noStream bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use: "top [VM...]", Aliases: []string{"stats"}, Short: "Show what VMs use, live",
		Long: `Show what VMs use: those that run, or the given ones. On a terminal the table is
live, until ctrl-C; elsewhere, with --no-stream or as JSON it is shown once.

CPU% is of one whole CPU of the host. MEM is what the guest uses of what it has,
HOST MEM what the VM takes of the host. Network and disk are counted from the
start of the VM: received / sent, read / written.`,
		Example:           "  hatch top\n  hatch top web --no-stream -o json",
		ValidArgsFunction: c.completeVMs,
		RunE: func(cmd *cobra.Command, refs []string) error {
			if interval < leastInterval {
				return usage(cmd, "--interval takes %s at least, not %s", leastInterval, interval)
			}
			server, err := c.client()
			if err != nil {
				return err
			}
			if err := c.top(cmd.Context(), watched{server, refs, all}, interval, noStream); err != nil {
				return fmt.Errorf("cannot show what VMs use: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also VMs that do not run")
	cmd.Flags().BoolVar(&noStream, "no-stream", false, "show it once")
	cmd.Flags().DurationVar(&interval, "interval", usualInterval, "how often to look")
	return cmd
}

func (c *cli) top(ctx context.Context, w watched, interval time.Duration, once bool) error {
	rows, err := w.look(ctx)
	if err != nil {
		return err
	}
	if c.outTTY && !once && !c.format.structured() && c.env("TERM") != "dumb" {
		return c.topLive(ctx, w, rows, interval)
	}
	list := make([]api.Metrics, 0, len(rows))
	var faults []error
	for _, r := range rows {
		if r.err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", displayName(r.vm), r.err))
			continue
		}
		list = append(list, r.metrics)
	}
	return errors.Join(printList(c, list, func(wide bool) table { return topTable(rows, wide) }), errors.Join(faults...))
}

// watched are the VMs to look at.
type watched struct {
	server *client.Client
	refs   []string // none: those that run
	all    bool     // or all
}

// usageRow is one VM and what it uses, or why that is not known.
type usageRow struct {
	vm      api.VM
	metrics api.Metrics
	err     error
}

// look asks for the VMs, and what each of them uses.
func (w watched) look(ctx context.Context) ([]usageRow, error) {
	vms, err := w.vms(ctx)
	if err != nil {
		return nil, err
	}
	rows := make([]usageRow, len(vms))
	var each errgroup.Group
	each.SetLimit(metricsAtOnce)
	for i, v := range vms {
		each.Go(func() error {
			m, err := w.server.VMMetrics(ctx, v.ID)
			rows[i] = usageRow{v, m, err}
			return nil
		})
	}
	_ = each.Wait() // each row has its own fault
	kept := rows[:0]
	for _, r := range rows {
		if !client.IsNotFound(r.err) { // deleted meanwhile
			kept = append(kept, r)
		}
	}
	return kept, ctx.Err()
}

func (w watched) vms(ctx context.Context) ([]api.VM, error) {
	vms, err := allVMs(ctx, w.server, client.ListOptions{})
	if err != nil {
		return nil, err
	}
	var found []api.VM
	for _, ref := range w.refs {
		v, err := pickFrom("VM", ref, vms, vmName)
		if err != nil {
			return nil, orList(err, "hatch ls -a")
		}
		found = append(found, v)
	}
	for _, v := range vms {
		if len(w.refs) == 0 && (w.all || hasMachine(v.State)) {
			found = append(found, v)
		}
	}
	return found, nil
}

// hasMachine reports whether a VM in this state may use something.
func hasMachine(state string) bool {
	switch state {
	case api.StateStarting, api.StateRunning, api.StateStopping, api.StatePaused:
		return true
	}
	return false
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
		cells := make([]string, len(t.head)) // each is shown as unknown
		copy(cells, []string{r.vm.Name, r.vm.ID, r.vm.State})
		t.row(cells...)
	}
	return t
}

func topCells(v api.VM, m api.Metrics, wide bool) []string {
	cells := []string{v.Name, v.ID, m.State, "", guestMemory(m.Memory), "", "", "", ""}
	if m.CountersSince != nil {
		copy(cells[3:], []string{fmt.Sprintf("%.1f%%", m.VCPU.UtilizationPercent)})
		copy(cells[5:], []string{
			bytesText(m.Memory.HostResidentBytes), pair(m.Net.RxBytes, m.Net.TxBytes), pair(m.Block.ReadBytes, m.Block.WriteBytes),
			spanText(time.Duration(m.UptimeSeconds) * time.Second),
		})
	}
	if wide {
		cells = append(cells, strconv.Itoa(m.VCPUCount), loadText(m.Load), guestDisk(m.Disk), bytesText(m.HostDiskBytes))
	}
	return cells
}

func guestMemory(m api.MemMetrics) string {
	if m.GuestUsedBytes == nil || m.GuestTotalBytes == nil {
		return ""
	}
	return pair(*m.GuestUsedBytes, *m.GuestTotalBytes)
}

func guestDisk(d *api.DiskMetrics) string {
	if d == nil {
		return ""
	}
	return pair(d.UsedBytes, d.TotalBytes)
}

func loadText(l *api.LoadMetrics) string {
	if l == nil {
		return ""
	}
	return fmt.Sprintf("%.2f %.2f %.2f", l.Avg1, l.Avg5, l.Avg15)
}

func pair[T int64 | uint64](a, b T) string { return bytesText(a) + " / " + bytesText(b) }

// bytesText writes a number of bytes in its largest unit, of 1024 each.
func bytesText[T int64 | uint64](n T) string {
	size, units := float64(n), "BKMGTPE"
	for size >= 1024 && len(units) > 1 {
		size, units = size/1024, units[1:]
	}
	if units[0] == 'B' || size >= 100 {
		return fmt.Sprintf("%.0f%c", size, units[0])
	}
	return fmt.Sprintf("%.1f%c", size, units[0])
}
