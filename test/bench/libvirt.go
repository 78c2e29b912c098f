package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/test/sandbox"
)

const (
	saveRounds = 10 // n, of each: libvirt takes its time
	saveWarmUp = 1  // more rounds, not counted
)

// saveSizes are guests' memory, and how much of it is filled with noise, in MiB.
var saveSizes = []struct{ mem, filled int }{{256, 0}, {2048, 1024}}

// saves is what was measured of one size: of hatchd, and of libvirt with the
// same guest.
type saves struct {
	ours   sleeps
	gone   sample // managedsave until QEMU is gone
	output sample // start from it until the guest says something
	run    sample // until the first command has been run
}

// measureLibvirt lets the same guest sleep through hatchd and through libvirt.
func measureLibvirt(out io.Writer, d *sandbox.Daemon) error {
	program := libvirtDaemon()
	if program == "" {
		fmt.Fprintf(out, "\nlibvirt is not compared, since it is not installed: %s\n", howToLibvirt)
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	c, err := d.Client()
	if err != nil {
		return err
	}
	if err := build(c, "minimal"); err != nil {
		return err
	}
	for _, size := range saveSizes {
		var s saves
		if err := s.measure(ctx, c, d.DataDir, program, size.mem, size.filled); err != nil {
			return err
		}
		s.print(out, size.mem, size.filled)
	}
	return nil
}

// measure takes turns: once through hatchd, once through libvirt.
func (s *saves) measure(ctx context.Context, c *client.Client, dataDir, program string, mem, filled int) (err error) {
	v, machine, err := runMinimal(ctx, c, dataDir, mem)
	if err != nil {
		return err
	}
	defer func() { _ = machine.close() }() // files of a temporary directory
	rival, err := startRival(ctx, program, machine, mem)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rival.close()) }()
	if filled > 0 {
		line := fill(filled)
		err := runThrough(ctx, c, v.ID, api.Command{Shell: line})
		if err := errors.Join(err, rival.do(ctx, wire.ProcessSpec{Shell: line})); err != nil {
			return err
		}
	}
	for round := range saveWarmUp + saveRounds {
		if err := errors.Join(s.ours.round(ctx, c, v.ID), s.round(ctx, rival)); err != nil {
			return err
		}
		if round+1 == saveWarmUp {
			*s = saves{}
		}
	}
	return c.DeleteVM(ctx, v.ID)
}

// fill is a line that fills so many MiB of a guest's memory with noise, the same
// 16 of them again and again: an emulated guest is slow to make it.
func fill(mib int) string {
	return fmt.Sprintf("mkdir -p /full && mount -t tmpfs -o size=%dm full /full && dd if=/dev/urandom of=/full/noise bs=1M count=16 && "+
		"i=1; while [ $i -lt %d ]; do cat /full/noise; i=$((i+1)); done >/full/more", mib+1, mib/16)
}

func (s *saves) round(ctx context.Context, r *rival) error {
	gone, err := r.save()
	if err != nil {
		return err
	}
	output, run, err := r.start(ctx)
	if err != nil {
		return err
	}
	s.gone, s.output, s.run = append(s.gone, gone), append(s.output, output), append(s.run, run)
	return nil
}

// rival is a guest that libvirt runs.
type rival struct{ *libvirt }

// ticking says something every 20 ms, and starts no process for it.
const ticking = "mkfifo /tick && exec 3<>/tick && while :; do echo tick; read -t 0.02 x <&3; done >/dev/ttyS0"

// startRival starts a libvirt and, in it, the guest that machine is a copy of.
func startRival(ctx context.Context, program string, machine *bare, mem int) (r *rival, err error) {
	l, err := startLibvirt(program)
	if err != nil {
		return nil, err
	}
	r = &rival{l}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("cannot run the guest in libvirt: %w\n%s", err, sandbox.Tail(l.log(), 20)), l.close())
		}
	}()
	if err := r.define(machine, mem); err != nil {
		return nil, err
	}
	if err := errors.Join(r.begin("start "+domainName), r.await("started")); err != nil {
		return nil, err
	}
	var last error
	up := func() (bool, error) {
		last = r.do(ctx, wire.ProcessSpec{Argv: []string{"/bin/true"}})
		return last == nil, ctx.Err()
	}
	if err := sandbox.Poll(patience, up); err != nil {
		return nil, errors.Join(err, last)
	}
	return r, r.tick(ctx)
}

// tick has the guest say something on its serial console all the time.
func (r *rival) tick(ctx context.Context) error {
	session, err := r.session(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = session.Close() }()
	_, err = session.StartProcess(ctx, wire.ProcessSpec{ID: "exec_tickticktick", Shell: ticking})
	return err
}

func (r *rival) define(machine *bare, mem int) error {
	if err := os.Mkdir(r.path("guest"), 0o700); err != nil {
		return err
	}
	d, err := domainOf(machine, r.path("guest"), mem)
	if err != nil {
		return err
	}
	f, err := os.Create(r.path("domain.xml"))
	if err != nil {
		return err
	}
	if err := errors.Join(domainXML.Execute(f, d), f.Close(), r.own()); err != nil {
		return err
	}
	return errors.Join(r.begin("define "+f.Name()), r.await("defined"))
}

// session begins one with the guest's agent.
func (r *rival) session(ctx context.Context) (*wire.Client, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", r.path("guest", "agent"))
	if err != nil {
		return nil, err
	}
	return wire.Connect(ctx, conn)
}

// do runs a command in the guest.
func (r *rival) do(ctx context.Context, spec wire.ProcessSpec) error {
	session, err := r.session(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = session.Close() }()
	return runIn(ctx, session, spec)
}

// save tells how long a managedsave takes until QEMU is gone.
func (r *rival) save() (time.Duration, error) {
	vmm, err := findVMM(domainName)
	if err != nil {
		return 0, err
	}
	gone := vmm.watch()
	began := time.Now()
	if err := errors.Join(r.begin("managedsave "+domainName), r.await("saved")); err != nil {
		return 0, err
	}
	return (<-gone).Sub(began), nil
}

// start tells how long it takes until the guest says something, and until a
// command has been run.
func (r *rival) start(ctx context.Context) (output, run time.Duration, err error) {
	said := r.said()
	began := time.Now()
	if err := r.begin("start " + domainName); err != nil {
		return 0, 0, err
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for r.said() <= said {
		if time.Since(began) > patience {
			return 0, 0, errors.Join(errors.New("the guest does not go on"), r.await("started"))
		}
		<-tick.C
	}
	output = time.Since(began)
	if err := errors.Join(r.await("started"), r.do(ctx, wire.ProcessSpec{Argv: []string{"/bin/true"}})); err != nil {
		return 0, 0, err
	}
	return output, time.Since(began), nil
}

// said is how much the guest has printed, in bytes.
func (r *rival) said() int64 {
	info, err := os.Stat(r.path("guest", "console"))
	if err != nil {
		return 0
	}
	return info.Size()
}

// close ends the guest and libvirt.
func (r *rival) close() error {
	return errors.Join(r.begin("destroy "+domainName), r.await("destroyed"), r.libvirt.close())
}

func (s *saves) print(out io.Writer, mem, filled int) {
	ratio := func(ours, theirs sample) string {
		return fmt.Sprintf("1 : %.1f", float64(theirs.median())/float64(ours.median()))
	}
	fmt.Fprintf(out, "\nsleep and wake of the minimal image, %d MiB, %d of them filled, against libvirt's managedsave and start of the same guest, in turn\n", mem, filled)
	fmt.Fprintf(out, "  sleep, until the VMM is gone             %s\n", s.ours.gone.tail())
	fmt.Fprintf(out, "    libvirt, managedsave                   %s\n", s.gone.tail())
	fmt.Fprintf(out, "    ratio of the medians                   %s\n", ratio(s.ours.gone, s.gone))
	fmt.Fprintf(out, "  from then until the memory is on disk    %s\n", s.ours.durable.tail())
	fmt.Fprintf(out, "  wake from RAM, until a command was run   %s\n", s.ours.exec.tail())
	fmt.Fprintf(out, "  wake from disk, until a command was run  %s\n", s.ours.cold.tail())
	fmt.Fprintf(out, "    libvirt, until a command was run       %s\n", s.run.tail())
	fmt.Fprintf(out, "    libvirt, until its guest says more     %s\n", s.output.tail())
	fmt.Fprintf(out, "    ratio of the medians, RAM and disk     %s, %s\n", ratio(s.ours.exec, s.run), ratio(s.ours.cold, s.run))
}
