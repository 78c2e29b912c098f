// Package agent is hatch-agent inside a guest that has booted: it serves hatchd on
// the virtio-serial port or a vsock port, reports the guest's addresses and
// cloud-init's state, and shuts the guest down.
//
// internal/agent/boot starts it. internal/guest/wire has the protocol,
// internal/agent/proc the processes, and internal/agent/files the files. The agent
// must start fast and use no CPU time in an idle guest: it waits for events instead of
// polling, and imports few packages. Start at [Agent.Run].
package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/agent/awake"
	"github.com/hatchvm/hatch/internal/agent/files"
	"github.com/hatchvm/hatch/internal/agent/halt"
	"github.com/hatchvm/hatch/internal/agent/identity"
	"github.com/hatchvm/hatch/internal/agent/proc"
	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/logkey"
)

// Agent implements [wire.Handler] and, through what it embeds,
// [wire.FileHandler] and [wire.ProcessHandler].
type Agent struct {
	wire.FileHandler
	wire.ProcessHandler
	processes *proc.Table
	awake     *awake.Keeper

	log     *slog.Logger
	version string
	bootID  string
	status  *statusStore
	dialled chan struct{} // has one element for each connection that the host has open

	reidentifier *reidentifier
	ending       *ending
	trimming     sync.Mutex // held while the VM's disk is trimmed
}

// New returns an agent that reports version as its own.
func New(log *slog.Logger, version string) *Agent {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		log.Error("cannot read the boot id", logkey.Error, err)
	}
	processes := proc.New(log)
	return &Agent{
		FileHandler: files.New("/"), ProcessHandler: processes, processes: processes, awake: awake.NewKeeper(),
		log: log, version: version, bootID: strings.TrimSpace(string(id)), dialled: make(chan struct{}, maxDialled),
		status: &statusStore{
			status:  wire.Status{CloudInit: wire.CloudInit{Status: wire.CloudInitRunning}},
			changed: make(chan struct{}),
		},
		reidentifier: newReidentifier(identity.New(log)), ending: newEnding(),
	}
}

// reopenBackoff is the wait before a port that has failed is opened again.
const reopenBackoff = time.Second

// Run serves one connection of hatchd after the other until ctx is done.
func (a *Agent) Run(ctx context.Context) {
	defer func() { _ = a.processes.Close() }()
	go a.watchAddresses(ctx)
	go a.watchCloudInit(ctx, "/")
	go a.watchHostKeys(ctx, "/")
	go a.watchEnding(ctx)
	go a.finishIdentities(ctx)
	go a.trimRegularly(ctx)
	go a.serveVsock(ctx)
	go a.serveAwake(ctx)
	for ctx.Err() == nil {
		err := a.servePort(ctx)
		a.log.Error("port to the host failed", logkey.Error, err)
		select {
		case <-time.After(reopenBackoff):
		case <-ctx.Done():
		}
	}
}

// servePort opens the port and serves sessions on it until it fails.
func (a *Agent) servePort(ctx context.Context) error {
	port, err := openPort()
	if err != nil {
		return err
	}
	defer func() { _ = port.Close() }()
	for {
		if err := port.file.SetDeadline(time.Time{}); err != nil {
			return fmt.Errorf("cannot wait for the port to the host: %w", err)
		}
		conn := &portConn{port: port, replay: port.last}
		port.last = nil
		if err := a.serve(ctx, conn); err != nil {
			return err
		}
	}
}

// serve serves one session. It returns an error when the port can serve no further
// session.
func (a *Agent) serve(ctx context.Context, conn *portConn) error {
	server, err := wire.Accept(conn)
	if err != nil {
		return err
	}
	conn.established = true
	err = server.Run(ctx, a)
	a.log.Debug("session ended", logkey.Error, err)
	return ctx.Err()
}

// Hello implements [wire.Handler].
func (a *Agent) Hello() wire.Hello {
	return wire.Hello{Agent: a.version, Versions: []int{wire.Version}, BootID: a.bootID}
}

// Status implements [wire.Handler].
func (a *Agent) Status() wire.Status {
	if a.goingDown(context.Background()) {
		a.ending.look()
	}
	st, _ := a.status.read()
	return st
}

// Watch implements [wire.Handler].
func (a *Agent) Watch(ctx context.Context, report func(wire.Status) error) error {
	for {
		st, changed := a.status.read()
		if err := report(st); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Shutdown implements [wire.Handler].
func (a *Agent) Shutdown(_ context.Context, args wire.ShutdownArgs) (func(), error) {
	pid1 := findInit("/proc")
	a.log.Info("shutdown requested", "reboot", args.Reboot, "init", pid1.name)
	a.ending.mu.Lock()
	a.ending.asked = time.Now()
	a.ending.mu.Unlock()
	a.ending.look()
	return func() {
		if err := pid1.shutDown(args.Reboot); err != nil {
			a.log.Error("cannot shut down through init; the agent shuts down itself", logkey.Error, err)
			_ = halt.Machine(args.Reboot, gracePeriod)
		}
	}, nil
}
