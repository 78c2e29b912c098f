package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/sandbox"
)

const (
	benchImage = "img_minimal"
	rounds     = 12
	warmUps    = 2 // of the rounds, not counted: they fill caches
	benchMem   = 128
	benchDisk  = 256
	benchLimit = 2 * time.Minute
)

// boots are the times of creates and of a bare QEMU, in turn.
type boots struct {
	created   sample // POST /vms until its response
	ready     sample // POST /vms until the agent answers
	bare      sample // bare QEMU until the agent answers
	deleted   sample // DELETE until its response
	afterEnd  sample // DELETE, from the end of the VMM until its response
	steps     map[string]sample
	stepNames []string // in the order of the header
}

// measureBoots creates a VM, deletes it, and boots a bare QEMU, several times.
func measureBoots(out io.Writer, d *sandbox.Daemon) error {
	header := &timingHeader{next: http.DefaultTransport}
	c, err := d.Client(client.WithHTTPClient(&http.Client{Transport: header}))
	if err != nil {
		return err
	}
	if _, err := d.BuildImage(context.Background(), c, "minimal"); err != nil {
		return err
	}
	image, err := c.GetImage(context.Background(), benchImage)
	if err != nil {
		return err
	}
	b := &boots{steps: map[string]sample{}}
	for round := range rounds {
		if err := b.round(c, header, d.DataDir, image, round >= warmUps); err != nil {
			return err
		}
	}
	b.print(out)
	return nil
}

// round creates and deletes a VM, and then boots a copy in a bare QEMU.
func (b *boots) round(c *client.Client, header *timingHeader, dataDir string, image api.Image, count bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), benchLimit)
	defer cancel()
	began := time.Now()
	v, err := c.CreateVM(ctx, api.CreateVM{MachineSpec: api.MachineSpec{ImageID: benchImage, MemMiB: new(benchMem), DiskMiB: new(benchDisk)}}, client.CreateOptions{})
	if err != nil {
		return err
	}
	created := time.Since(began)
	timing := header.steps()
	if _, err := c.WaitVM(ctx, v.ID, "agent", benchLimit); err != nil {
		return err
	}
	ready := time.Since(began)

	vmm, machine, err := copyVM(dataDir, image, v.ID, benchDisk)
	if err != nil {
		return err
	}
	defer func() { _ = machine.close() }() // files of a temporary directory
	gone := vmm.watch()
	began = time.Now()
	if err := c.DeleteVM(ctx, v.ID); err != nil {
		return err
	}
	answered := time.Now()
	ended := <-gone
	bareBoot, err := machine.boot(ctx)
	if err != nil {
		return fmt.Errorf("cannot boot a bare QEMU: %w", err)
	}
	if !count {
		return nil
	}
	b.created, b.ready, b.bare = append(b.created, created), append(b.ready, ready), append(b.bare, bareBoot)
	b.deleted, b.afterEnd = append(b.deleted, answered.Sub(began)), append(b.afterEnd, answered.Sub(ended))
	for _, step := range timing {
		if b.steps[step.name] == nil {
			b.stepNames = append(b.stepNames, step.name)
		}
		b.steps[step.name] = append(b.steps[step.name], step.took)
	}
	return nil
}

func (b *boots) print(out io.Writer) {
	fmt.Fprintf(out, "cold create of the minimal image, %d MiB, against a bare QEMU, in turn\n", benchMem)
	fmt.Fprintf(out, "  hatchd, until the agent answers      %s\n", b.ready)
	fmt.Fprintf(out, "  bare QEMU, until the agent answers   %s\n", b.bare)
	fmt.Fprintf(out, "  ratio of the medians                 %.3f\n", ratio(b.ready, b.bare))
	fmt.Fprintf(out, "  hatchd, until POST /vms responds     %s\n", b.created)
	var own time.Duration
	for _, name := range b.stepNames {
		fmt.Fprintf(out, "    %-34s %s\n", name, b.steps[name])
		if name != "machine" && name != "total" {
			own += b.steps[name].median()
		}
	}
	if len(b.stepNames) > 0 {
		fmt.Fprintf(out, "  hatchd's own share: the medians of all steps but the VMM's start add up to %s\n", ms(own))
	}
	fmt.Fprintf(out, "\ndelete of a running VM\n  until DELETE responds                %s\n  from the VMM's end until it responds %s\n", b.deleted, b.afterEnd)
}

// timingHeader records the Server-Timing header of the last create.
type timingHeader struct {
	next http.RoundTripper

	mu     sync.Mutex
	header string
}

// RoundTrip implements http.RoundTripper.
func (h *timingHeader) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := h.next.RoundTrip(req)
	if err == nil && req.Method == http.MethodPost && req.URL.Path == "/vms" {
		h.mu.Lock()
		h.header = resp.Header.Get("Server-Timing")
		h.mu.Unlock()
	}
	return resp, err
}

// steps returns the steps of the last create.
func (h *timingHeader) steps() []step {
	h.mu.Lock()
	defer h.mu.Unlock()
	return parseTiming(h.header)
}
