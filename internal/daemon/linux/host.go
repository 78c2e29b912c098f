// Package linux makes the daemon's real host: drivers, bridge and packet rules,
// ports that lead to guests, disks, guests' memory, consoles and agents.
//
// It puts adapters together and decides which drivers can be used here; what
// each part does is in its own package below internal/host and internal/vmm.
// It also undoes all of it for `hatchd clean`. Start at [Open].
package linux

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"

	"github.com/hatchvm/hatch/internal/config"
	"github.com/hatchvm/hatch/internal/daemon"
	"github.com/hatchvm/hatch/internal/doctor"
	"github.com/hatchvm/hatch/internal/guest"
	"github.com/hatchvm/hatch/internal/guest/initramfs"
	"github.com/hatchvm/hatch/internal/host/capacity"
	"github.com/hatchvm/hatch/internal/host/console"
	"github.com/hatchvm/hatch/internal/host/disk"
	"github.com/hatchvm/hatch/internal/host/link"
	"github.com/hatchvm/hatch/internal/host/memory"
	"github.com/hatchvm/hatch/internal/host/recipe"
	"github.com/hatchvm/hatch/internal/host/rootfs"
	"github.com/hatchvm/hatch/internal/host/snapshot"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/server/admission"
	"github.com/hatchvm/hatch/internal/server/portgate"
	"github.com/hatchvm/hatch/internal/vmm/firecracker"
	"github.com/hatchvm/hatch/internal/vmm/qemu"
)

var _ daemon.OpenHost = Open

// descriptorsPerClient is how many file descriptors there must be for each connection to
// VMs' SSH ports, and for each to their published ports; one uses two. Most are for VMs,
// and for the API.
const descriptorsPerClient = 8

// portConns are the connections to one published port, and portPlaces those to all, at
// a time. One client may be a proxy for many.
const portConns = 2048

var portPlaces = admission.PlaceLimits{Total: 4096, PerClient: 2048}

// Open claims the host, sets the network up, with the rules of live links in force
// from the start, and makes everything else that touches the host.
//
// Errors: errs.Conflict with code host_in_use when another hatchd uses this host.
func Open(ctx context.Context, env daemon.HostEnv) (*daemon.Host, error) {
	cfg := env.Config
	claim, err := link.ClaimHost(link.RunDir, cfg.DataDir)
	if err != nil {
		return nil, err
	}
	env.OnClose(claim.Close)
	drivers, err := makeDrivers(ctx, cfg, cfg.VMM == firecracker.Name, env.Log)
	if err != nil {
		return nil, err
	}
	first := drivers[0].Info()
	env.Log.Info("chose the default driver", logkey.VMM, first.Name, logkey.Version, first.Version, logkey.Reason, first.Why)
	builder, err := recipe.New(env.Path("images"), cfg.DebianMirrors)
	if err != nil {
		return nil, err
	}
	dirs, err := rootfs.OpenDirs(cfg.ImageDirs, cfg.DataDir) // before anything is changed
	if err != nil {
		return nil, err
	}
	env.OnClose(dirs.Close)
	links := link.New(link.Config{
		Network: cfg.Network, AllowPrivate: cfg.EgressAllowPrivate, APIPort: apiPort(cfg.HTTPAddr), Log: env.Log,
	})
	if err := links.Setup(ctx, env.LiveLinks); err != nil {
		return nil, errors.Join(err, links.Close())
	}
	env.OnClose(links.Close)
	most := admission.Descriptors() / descriptorsPerClient
	gate := portgate.New(portgate.Config{
		SSH: portgate.Kind{
			Allowed: cfg.SSHAllowed, MaxConns: cfg.SSHMaxVMConns,
			Open: admission.PlaceLimits{Total: min(cfg.SSHMaxConns, most), PerClient: cfg.SSHMaxClientConns},
		},
		Ports: portgate.Kind{
			Allowed: cfg.PortAllowed, MaxConns: portConns,
			Open: admission.PlaceLimits{Total: min(portPlaces.Total, most), PerClient: portPlaces.PerClient},
		},
		Wake: env.WakeOnDemand, Dial: env.Dial, Ended: env.Ended, Log: env.Log,
	})
	env.OnClose(func() error { gate.Shutdown(); return nil })
	files := disk.New(env.Path(daemon.VMsDir), env.Path("templates"))
	memories, err := memory.Open(env.Path(daemon.MemoryDir), files.Dir)
	if err != nil {
		return nil, err
	}
	env.OnClose(memories.Close)
	snapshots, err := snapshot.Open(env.Path(daemon.SnapshotDir), snapshot.ReserveBytes)
	if err != nil {
		return nil, err
	}
	env.OnClose(snapshots.Close)
	return &daemon.Host{
		Drivers: drivers, Network: links, Forwards: gate, Files: files, Memories: memories, Snapshots: snapshots,
		Guests:   guest.New(env.Log, env.SSHAuthority),
		Consoles: console.New(files.Dir, daemon.ConsoleLogBytes, env.Log),
		Inspector: rootfs.New(rootfs.Config{
			ModulesDir: env.Path("modules"), Modules: initramfs.ModuleNames(), NeedsPVH: first.Name == qemu.Name, Reserve: snapshot.ReserveBytes,
			Private: env.PrivateDirs(), Dirs: dirs,
		}),
		Initramfs:    initramfs.NewMaker(env.Path("initramfs"), cfg.AgentPath),
		Builder:      builder,
		OwnUser:      true,
		PortBusy:     portBusy,
		CheckNetwork: links.Check, CheckVMM: func() error { return checkPrograms(cfg, drivers) },
		CheckMemory: memories.Check, CheckTasks: func() error { return capacity.CheckTasks(cfg.Cgroup) },
		CloseForwards: gate.Shutdown,
		ShuttingDown: func(ctx context.Context) (bool, error) {
			return managerStops(ctx, "/run/systemd/system", "systemctl")
		},
	}, nil
}

// apiPort returns the port of an address, 0 if it is not known before hatchd listens.
func apiPort(addr string) uint16 {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return 0
	}
	return uint16(n)
}

// portBusy reports whether another process listens on a port of this host.
func portBusy(port int) bool {
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return true
	}
	return l.Close() != nil
}

// DoctorSettings returns what `hatchd doctor` examines the host for.
func DoctorSettings(cfg config.Config) doctor.Settings {
	return doctor.Settings{
		DataDir: cfg.DataDir, TrustDataDirParents: cfg.TrustDataDirParents, MemoryDir: filepath.Join(cfg.DataDir, daemon.MemoryDir), DiskReserveMiB: memory.ReserveBytes >> 20,
		HTTPAddr: cfg.HTTPAddr, HTTPTLS: cfg.HTTPTLSCert != "", ExposesHTTP: cfg.ExposesPlainHTTP(), Sockets: cfg.SocketPaths(),
		BridgeName: cfg.Network.Bridge, Cgroup: cfg.Cgroup,
		ProxyAddr: cfg.ProxyAddr, TLSAddr: cfg.TLSAddr, ProxyDomain: cfg.ProxyDomain,
		SSHPortMin: cfg.SSHPortMin, SSHPortMax: cfg.SSHPortMax, PortMin: cfg.PortMin, PortMax: cfg.PortMax,
		Driver: cfg.VMM, QEMUBin: cfg.QEMUBin, FirecrackerBin: cfg.FirecrackerBin, JailerBin: cfg.JailerBin, AgentPath: cfg.AgentPath,
		DefaultImage: filepath.Join(cfg.DataDir, "images", "debian.json"), DebianMirrors: cfg.DebianMirrors,
	}
}
