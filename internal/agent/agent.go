// Package agent is what runs inside a guest once it has booted: it answers
// hatchd on the virtio-serial port or on a vsock port, reports the guest's addresses and
// cloud-init's state, and shuts the guest down when asked.
//
// How it came to run is internal/agent/boot; what is spoken is
// internal/guest/wire; the processes that it runs are internal/agent/proc, and
// its work on files internal/agent/files. It starts fast and sleeps well: it
// waits for events, and imports little. Start at [Agent.Run].
package agent

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/agent/files"
	"github.com/hatchvm/hatch/internal/agent/identity"
	"github.com/hatchvm/hatch/internal/agent/proc"
	"github.com/hatchvm/hatch/internal/guest/wire"
)

// Agent implements [wire.Handler], [wire.FileHandler] by the guest's files, and
// [wire.ProcessHandler] by its table.
type Agent struct {
	wire.FileHandler
	wire.ProcessHandler
	processes *proc.Table

	log     *slog.Logger
	version string
	bootID  string
	status  *board
	dialled chan struct{} // one for each connection that is open for the host

	recasting *recasting
}

// New returns an agent that calls itself version.
func New(log *slog.Logger, version string) *Agent {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		log.Error("cannot read the boot id", "err", err)
	}
	processes := proc.New(log)
	return &Agent{
		FileHandler: files.New("/"), ProcessHandler: processes, processes: processes,
		log: log, version: version, bootID: strings.TrimSpace(string(id)), status: newBoard(), dialled: make(chan struct{}, maxDialled),
		recasting: newRecasting(identity.New(log)),
	}
}

// reopenPause spaces attempts after a port has failed.
const reopenPause = time.Second

// Run serves one host after the other until ctx is done. Before it answers the
// first one it knows the guest's state.
func (a *Agent) Run(ctx context.Context) {
	defer func() { _ = a.processes.Close() }()
	go a.watchAddresses(ctx)
	go a.watchCloudInit(ctx, "/")
	go a.settle(ctx)
	go a.serveVsock(ctx)
	for ctx.Err() == nil {
		err := a.servePort(ctx)
		a.log.Error("the port to the host failed", "err", err)
		select {
		case <-time.After(reopenPause):
		case <-ctx.Done():
		}
	}
}

// servePort serves sessions on the port until it cannot be used any more.
func (a *Agent) servePort(ctx context.Context) error {
	port, err := openPort()
	if err != nil {
		return err
	}
	defer func() { _ = port.Close() }()
	for {
		conn, err := port.conn()
		if err != nil {
			return err
		}
		if err := a.serve(ctx, conn); err != nil {
			return err
		}
	}
}

// serve holds one session. It returns an error when no other can follow.
func (a *Agent) serve(ctx context.Context, conn *portConn) error {
	server, err := wire.Accept(conn)
	if err != nil {
		return err
	}
	conn.established = true
	err = server.Run(ctx, a)
	a.log.Debug("the host is gone", "err", err)
	return ctx.Err()
}

// Hello implements [wire.Handler].
func (a *Agent) Hello() wire.Hello {
	return wire.Hello{Agent: a.version, Versions: []int{wire.Version}, BootID: a.bootID}
}

// Status implements [wire.Handler].
func (a *Agent) Status() wire.Status {
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
	way := ownInit("/proc")
	a.log.Info("the host asks for a shutdown", "reboot", args.Reboot, "init", way.name)
	return func() {
		if err := way.shutDown(args.Reboot); err != nil {
			a.log.Error("cannot shut down as this init wants it; doing it directly", "err", err)
			_ = shutDownDirectly(args.Reboot)
		}
	}, nil
}
