package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/test/sandbox"
)

const (
	workMem    = 256 // MiB
	workDisk   = 512 // MiB
	execs      = 200
	echoes     = 1000
	execWarmUp = 10 // more of each, not counted
	fileSize   = 128 << 20
	fileRounds = 3
)

// works are the times of work inside a guest.
type works struct {
	execs    sample        // POST /vms/{id}/exec of /bin/true
	inGuest  time.Duration // mean of the same program from a shell in the guest
	echo     sample        // 64 bytes through a bare port and back
	up, down sample        // a file of fileSize through the API
	rawUp    time.Duration // as many bytes through the bare port
	rawDown  time.Duration
}

// measureWork runs commands and copies files through hatchd, and then sends bytes
// through a port of a bare QEMU with the same guest.
func measureWork(out io.Writer, d *sandbox.Daemon) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	c, err := withMinimal(ctx, d)
	if err != nil {
		return err
	}
	v, err := c.CreateVM(ctx, api.CreateVM{MachineSpec: api.MachineSpec{ImageID: benchImage, MemMiB: new(workMem), DiskMiB: new(workDisk)}}, client.CreateOptions{Wait: "ready"})
	if err != nil {
		return err
	}
	var w works
	if err := errors.Join(w.throughAPI(ctx, c, v.ID), w.throughPort(ctx, c, v.ID, d.DataDir)); err != nil {
		return err
	}
	w.print(out)
	return nil
}

func (w *works) throughAPI(ctx context.Context, c *client.Client, vm string) error {
	for i := range execWarmUp + execs {
		began := time.Now()
		if err := runTrue(ctx, c, vm); err != nil {
			return err
		}
		if i >= execWarmUp {
			w.execs = append(w.execs, time.Since(began))
		}
	}
	loop := fmt.Sprintf("i=0; while [ $i -lt %d ]; do /bin/true; i=$((i+1)); done", execs)
	began := time.Now()
	if _, err := c.RunExec(ctx, vm, api.RunExec{Command: api.Command{Shell: loop}}); err != nil {
		return err
	}
	w.inGuest = time.Since(began) / execs
	for range fileRounds {
		if err := w.copyFile(ctx, c, vm); err != nil {
			return err
		}
	}
	return nil
}

// copyFile writes a file and reads it.
func (w *works) copyFile(ctx context.Context, c *client.Client, vm string) error {
	began := time.Now()
	if _, err := c.WriteFile(ctx, vm, "/bench", io.LimitReader(randomBytes(), fileSize), client.WriteOptions{}); err != nil {
		return err
	}
	w.up = append(w.up, time.Since(began))
	began = time.Now()
	content, err := c.ReadFile(ctx, vm, "/bench", client.FilePart{})
	if err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, content)
	if err = errors.Join(err, content.Close()); err != nil || n != fileSize {
		return fmt.Errorf("%d bytes were read: %w", n, err)
	}
	w.down = append(w.down, time.Since(began))
	return nil
}

// randomBytes returns bytes that do not compress, the same each time.
func randomBytes() io.Reader { return rand.NewChaCha8([32]byte{}) }

// throughPort deletes the VM and boots a bare copy of it, with one more port, which
// the agent does not use.
func (w *works) throughPort(ctx context.Context, c *client.Client, vm, dataDir string) error {
	image, err := c.GetImage(ctx, benchImage)
	if err != nil {
		return err
	}
	_, machine, err := copyVM(dataDir, image, vm, workDisk)
	if err != nil {
		return err
	}
	defer func() { _ = machine.close() }() // files of a temporary directory
	if err := c.DeleteVM(ctx, vm); err != nil {
		return err
	}
	socket := filepath.Join(machine.dir, "port.sock")
	return machine.run(ctx, func(session *wire.Client) error { return w.measurePort(ctx, session, socket) },
		"-chardev", "socket,id=port,server=on,wait=off,path="+socket,
		"-device", `{"driver":"virtserialport","chardev":"port","name":"hatch.bench.0"}`)
}

// findPort sets $port to the guest's device of the port: the second, after the
// agent's.
const findPort = "port=$(echo /dev/vport*p2); "

func (w *works) measurePort(ctx context.Context, session *wire.Client, socket string) error {
	err := withPort(ctx, session, socket, "exec 3<>$port; cat <&3 >&3", func(port net.Conn) error {
		message := make([]byte, 64)
		for i := range execWarmUp + echoes {
			began := time.Now()
			if _, err := port.Write(message); err != nil {
				return err
			}
			if _, err := io.ReadFull(port, message); err != nil {
				return err
			}
			if i >= execWarmUp {
				w.echo = append(w.echo, time.Since(began))
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	began := time.Now()
	err = withPort(ctx, session, socket, "cat $port >/dev/null", func(port net.Conn) error {
		_, err := io.CopyN(port, randomBytes(), fileSize)
		return err
	})
	if err != nil {
		return err
	}
	w.rawUp = time.Since(began)
	began = time.Now()
	err = withPort(ctx, session, socket, fmt.Sprintf("dd if=/dev/zero of=$port bs=32k count=%d", fileSize>>15), func(port net.Conn) error {
		_, err := io.CopyN(io.Discard, port, fileSize)
		return err
	})
	w.rawDown = time.Since(began)
	return err
}

// benchProcess is the id of the process that runs without hatchd, one at a time.
const benchProcess = "exec_benchbench00"

// withPort runs a line in the guest that reads or writes the port, and do with the
// other end. It returns once both have ended: the line gets an end of file when do
// returns.
func withPort(ctx context.Context, session *wire.Client, socket, line string, do func(net.Conn) error) (err error) {
	var dialer net.Dialer
	port, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = port.Close() })
	defer stop()
	if _, err := session.StartProcess(ctx, wire.ProcessSpec{ID: benchProcess, Shell: findPort + line}); err != nil {
		return errors.Join(err, port.Close())
	}
	err = do(port)
	if err := errors.Join(err, port.Close()); err != nil {
		return err
	}
	_, stream, err := session.AttachProcess(ctx, benchProcess, 0)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	_, err = untilExit(stream)
	return errors.Join(err, session.RemoveProcess(ctx, benchProcess))
}

func (w *works) print(out io.Writer) {
	rate := func(d time.Duration) float64 { return fileSize / 1e6 / d.Seconds() }
	fmt.Fprintf(out, "\nwork inside the minimal image, %d MiB, against a bare port of the same guest\n", workMem)
	fmt.Fprintf(out, "  POST /vms/{id}/exec of /bin/true     %s\n", w.execs.tail())
	fmt.Fprintf(out, "  /bin/true from the guest's own shell mean %s\n", ms(w.inGuest))
	fmt.Fprintf(out, "  64 bytes through the port and back   %s\n", w.echo.tail())
	fmt.Fprintf(out, "  ratio of the medians                 %.1f; without the guest's own fork and exec, %.1f\n",
		ratio(w.execs, w.echo), float64(w.execs.median()-w.inGuest)/float64(w.echo.median()))
	fmt.Fprintf(out, "  a file of %d MiB up, and down        %.1f MB/s, %.1f MB/s\n", fileSize>>20, rate(w.up.median()), rate(w.down.median()))
	fmt.Fprintf(out, "  the same through the port            %.1f MB/s, %.1f MB/s\n", rate(w.rawUp), rate(w.rawDown))
	fmt.Fprintf(out, "  time against the port's              %.2f, %.2f\n",
		float64(w.up.median())/float64(w.rawUp), float64(w.down.median())/float64(w.rawDown))
}
