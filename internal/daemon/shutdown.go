package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/logkey"
)

// How long running requests, background work and operations may take to end.
const (
	drainTimeout     = 30 * time.Second
	hostDrainTimeout = 5 * time.Second // when the host shuts down: VMs need the time
	lastTimeout      = time.Second     // after VMs are down
)

// end ends what uses the parts. If that is because ctx is done, VMs go down if the
// host shuts down. What does not end in time keeps the parts open: they are closed
// by the end of the process.
func (p *parts) end(ctx context.Context, server *http.Server, background <-chan struct{}) error {
	told := ctx.Err() != nil
	ctx = context.WithoutCancel(ctx)
	hostStops := told && p.hostStops(ctx)
	p.vms.PostponeStarts()
	p.endStreams()
	busy := p.drain(ctx, server, background, hostStops)
	if told && !hostStops { // the host may have begun to shut down meanwhile
		hostStops = p.hostStops(ctx)
	}
	p.host.CloseForwards()
	var down error
	timeout := drainTimeout
	if hostStops {
		down, timeout = p.vms.Down(ctx), lastTimeout
	} else {
		p.log.Info("hatchd is shutting down; VMs go on running")
	}
	ending, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	busy = errors.Join(busy, await(ending, background), p.vms.Close(ending))
	if busy != nil {
		p.closers = nil
	}
	return errors.Join(down, busy)
}

// drain waits until requests and background work have ended: for the latter without
// a limit, unless the host shuts down. An error means that requests have not ended.
func (p *parts) drain(ctx context.Context, server *http.Server, background <-chan struct{}, hostStops bool) error {
	timeout := drainTimeout
	if hostStops {
		timeout = hostDrainTimeout
	}
	ending, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var routed error
	var routes sync.WaitGroup
	routes.Go(func() { routed = p.doors.close(ending, timeout/2) })
	err := ignoreClosed(server.Shutdown(ending))
	if err != nil {
		err = errors.Join(fmt.Errorf("requests still running: %w", err), server.Close())
	}
	routes.Wait()
	err = errors.Join(err, routed)
	if hostStops {
		_ = await(ending, background) // asked again once VMs are down
		return err
	}
	<-background
	return err
}

func await(ctx context.Context, background <-chan struct{}) error {
	select {
	case <-background:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("background work still running: %w", ctx.Err())
	}
}

// hostStops reports whether hatchd ends because the host shuts down. Then no VM can
// be started any more. A host that does not answer goes on: VMs that it ends all
// the same boot when it has started again.
func (p *parts) hostStops(ctx context.Context) bool {
	stops, err := p.askHost(ctx)
	if err != nil {
		p.log.Warn("cannot find out whether the host is shutting down", logkey.Error, err)
	}
	if stops {
		p.log.Info("hatchd is shutting down with the host; VMs go down", "policy", p.cfg.HostShutdown, "timeout", p.cfg.HostShutdownTimeout)
		p.vms.RefuseStarts()
	}
	return stops
}

// How often, and how far apart, a host that does not answer is asked.
const (
	maxAsks     = 3
	askInterval = 500 * time.Millisecond
)

func (p *parts) askHost(ctx context.Context) (stops bool, err error) {
	if p.host.ShuttingDown == nil {
		return false, nil
	}
	for ask := 1; ; ask++ {
		stops, err = p.host.ShuttingDown(ctx)
		if err == nil || ask == maxAsks {
			return stops, err
		}
		<-time.After(askInterval)
	}
}
