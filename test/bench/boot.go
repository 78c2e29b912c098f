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
	warmUps    = 2 // of the rounds, not counted: templates, initramfs and caches are made
	benchMem   = 128
	benchDisk  = 256
	patience   = 2 * time.Minute
	buildTime  = 30 * time.Minute
)

// boots is what was measured of creates and of a bare QEMU, in turn.
type boots struct {
	created   sample // POST /vms until it answers that the VM runs
	ready     sample // the same until the agent has answered
	bare      sample // QEMU alone until the agent has answered
	deleted   sample // DELETE until it answers
	beyond    sample // DELETE, from the end of the VMM until it answers
	steps     map[string]sample
	stepNames []string // in the order of the header
}

// measureBoots creates, boots by hand, deletes, again and again.
func measureBoots(out io.Writer, d *sandbox.Daemon) error {
	heard := &listener{next: http.DefaultTransport}
	c, err := d.Client(client.WithHTTPClient(&http.Client{Transport: heard}))
	if err != nil {
		return err
	}
	if err := build(c, "minimal"); err != nil {
		return err
	}
	image, err := c.GetImage(context.Background(), benchImage)
	if err != nil {
		return err
	}
	b := &boots{steps: map[string]sample{}}
	for round := range rounds {
		if err := b.round(c, heard, d.DataDir, image, round >= warmUps); err != nil {
			return err
		}
	}
	b.print(out)
	return nil
}

func build(c *client.Client, recipe string) error {
	ctx, cancel := context.WithTimeout(context.Background(), buildTime)
	defer cancel()
	b, err := c.StartImageBuild(ctx, api.BuildImage{Recipe: recipe})
	if err != nil {
		return err
	}
	err = sandbox.Poll(buildTime, func() (bool, error) {
		b, err = c.GetImageBuild(ctx, b.ID)
		return b.State != "running", err
	})
	if err == nil && b.State != "done" {
		err = fmt.Errorf("cannot build the %s image: %s", recipe, b.Error)
	}
	return err
}

// round is one create and delete, and then one boot by hand of what was created.
func (b *boots) round(c *client.Client, heard *listener, dataDir string, image api.Image, count bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	began := time.Now()
	v, err := c.CreateVM(ctx, api.CreateVM{ImageID: benchImage, MemMiB: new(benchMem), DiskMiB: new(benchDisk)}, client.CreateOptions{})
	if err != nil {
		return err
	}
	created := time.Since(began)
	timing := heard.timing()
	if _, err := c.WaitVM(ctx, v.ID, "agent", patience); err != nil {
		return err
	}
	ready := time.Since(began)

	vmm, machine, err := copyOfVM(dataDir, image, v.ID, benchDisk)
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
	alone, err := machine.boot(ctx)
	if err != nil {
		return fmt.Errorf("cannot boot by hand what hatchd has booted: %w", err)
	}
	if !count {
		return nil
	}
	b.created, b.ready, b.bare = append(b.created, created), append(b.ready, ready), append(b.bare, alone)
	b.deleted, b.beyond = append(b.deleted, answered.Sub(began)), append(b.beyond, answered.Sub(ended))
	for _, step := range timing {
		if b.steps[step.name] == nil {
			b.stepNames = append(b.stepNames, step.name)
		}
		b.steps[step.name] = append(b.steps[step.name], step.took)
	}
	return nil
}

func (b *boots) print(out io.Writer) {
	fmt.Fprintf(out, "cold create of the minimal image, %d MiB, against a bare QEMU that boots the same, in turn\n", benchMem)
	fmt.Fprintf(out, "  hatchd, until the agent answers      %s\n", b.ready)
	fmt.Fprintf(out, "  bare QEMU, until the agent answers   %s\n", b.bare)
	fmt.Fprintf(out, "  ratio of the medians                 %.3f\n", float64(b.ready.median())/float64(b.bare.median()))
	fmt.Fprintf(out, "  hatchd, until POST /vms answers      %s\n", b.created)
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
	fmt.Fprintf(out, "\ndelete of a running VM\n  until DELETE answers                 %s\n  from the VMM's end until it answers  %s\n", b.deleted, b.beyond)
}

// listener keeps the Server-Timing header of the last create.
type listener struct {
	next http.RoundTripper

	mu     sync.Mutex
	header string
}

// RoundTrip implements http.RoundTripper.
func (l *listener) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := l.next.RoundTrip(req)
	if err == nil && req.Method == http.MethodPost && req.URL.Path == "/vms" {
		l.mu.Lock()
		l.header = resp.Header.Get("Server-Timing")
		l.mu.Unlock()
	}
	return resp, err
}

// timing returns the steps of the last create, as the server took them.
func (l *listener) timing() []step {
	l.mu.Lock()
	defer l.mu.Unlock()
	return parseTiming(l.header)
}
