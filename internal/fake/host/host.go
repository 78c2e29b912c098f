// Package host makes a fake host for the daemon: everything of packages fake,
// fake/driver and fake/guest, with real directories for memory, snapshots and
// console logs.
//
// NOTHING RUNS AND NOTHING IS ISOLATED: VMs are pretended. It is for
// cmd/hatchd-fake, by which scripts and demonstrations run without root.
// Start at [Open].
package host

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/hatchvm/hatch/internal/daemon"
	"github.com/hatchvm/hatch/internal/fake"
	"github.com/hatchvm/hatch/internal/fake/driver"
	"github.com/hatchvm/hatch/internal/host/console"
	"github.com/hatchvm/hatch/internal/host/memory"
	"github.com/hatchvm/hatch/internal/host/rootfs"
	"github.com/hatchvm/hatch/internal/host/snapshot"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

var _ daemon.OpenHost = Open

// Open makes the fake host, and says so on stdout and in the log.
func Open(_ context.Context, env daemon.HostEnv) (*daemon.Host, error) {
	_, _ = fmt.Fprintln(env.Out, "hatchd-fake: VMs are only pretended")
	env.Log.Warn("hatchd-fake: VMs are only pretended; nothing runs, and nothing is isolated")
	files := fake.NewFiles(env.Path(daemon.VMsDir), nil)
	memories, err := memory.In(env.Path(daemon.MemoryDir), files.Dir)
	if err != nil {
		return nil, err
	}
	env.OnClose(memories.Close)
	snapshots, err := snapshot.Open(env.Path(daemon.SnapshotDir), 0)
	if err != nil {
		return nil, err
	}
	env.OnClose(snapshots.Close)
	dirs, err := rootfs.OpenDirs(env.Config.ImageDirs, env.Config.DataDir)
	if err != nil {
		return nil, err
	}
	env.OnClose(dirs.Close)
	links := &fake.Network{}
	guests := &fake.Guests{Dir: files.Dir, Report: func(vmID string) *vm.GuestReport { return report(links, vmID) }}
	healthy := func() error { return nil }
	guests.Up = func(context.Context) (string, error) { return bootID, nil }
	return &daemon.Host{
		Drivers: []vmm.Driver{driver.New()}, Network: links, Forwards: &fake.Forwards{},
		Files: files, Memories: memories, Snapshots: snapshots, Guests: guests,
		Consoles:  console.New(files.Dir, daemon.ConsoleLogBytes, env.Log),
		Inspector: rootfs.New(rootfs.Config{ModulesDir: env.Path("modules"), Private: env.PrivateDirs(), Dirs: dirs}), Initramfs: fake.Initramfs{}, Builder: fake.Builder{},
		CheckNetwork: healthy, CheckVMM: healthy, CheckMemory: healthy, CheckTasks: healthy,
		DefaultImage:  func(owner string) (image.Image, error) { return fake.Image(owner, env.Path("fake")) },
		CloseForwards: func() {},
	}, nil
}

// bootID is that of all boots of all fake guests.
const bootID = "fake"

// report is what a fake agent reports: its VM's address, and cloud-init done.
func report(links *fake.Network, vmID string) *vm.GuestReport {
	r := &vm.GuestReport{AgentVersion: "fake", CloudInit: vm.CloudInit{Status: "done"}}
	r.BootID, r.SSH = bootID, vm.SSHServer{Certificates: true, HostKeys: []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJGOh/lQHKqJ3rW4wnkYzWmhZ2vHAKRo1bMYUhGzZZZZ"}}
	if l, attached := links.Links()[vmID]; attached {
		r.Addresses = []netip.Addr{l.Address}
	}
	return r
}
