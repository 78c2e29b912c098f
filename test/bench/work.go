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

// works is what was measured of work inside a guest.
type works struct {
	execs    sample        // POST /vms/{id}/exec of a program that does nothing
	inGuest  time.Duration // the same program from a shell in the guest, the mean
	echo     sample        // 64 bytes through a bare port and back
	up, down sample        // a file of fileSize through the API
	rawUp    time.Duration // as many bytes through a bare port
	rawDown  time.Duration
}

// measureWork runs commands and passes files through hatchd, and then sends
// bytes through a port of a bare QEMU that runs the same guest.
func measureWork(out io.Writer, d *sandbox.Daemon) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	c, err := d.Client()
	if err != nil {
		return err
	}
	if err := build(c, "minimal"); err != nil {
		return err
	}
	v, err := c.CreateVM(ctx, api.CreateVM{ImageID: benchImage, MemMiB: new(workMem), DiskMiB: new(workDisk)}, client.CreateOptions{Wait: "ready"})
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
		if err := w.passFile(ctx, c, vm); err != nil {
			return err
		}
	}
	return nil
}

// passFile sends a file up and reads it back.
func (w *works) passFile(ctx context.Context, c *client.Client, vm string) error {
	began := time.Now()
	if _, err := c.WriteFile(ctx, vm, "/bench", io.LimitReader(noise(), fileSize), client.WriteOptions{}); err != nil {
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
		return fmt.Errorf("%d bytes came back: %w", n, err)
	}
	w.down = append(w.down, time.Since(began))
	return nil
}

// noise returns bytes without order, the same ones each time: nothing on the
// way may make them fewer.
func noise() io.Reader { return rand.NewChaCha8([32]byte{}) }

// throughPort deletes the VM and boots it once more by hand, with a port that
// leads past agent and protocol.
func (w *works) throughPort(ctx context.Context, c *client.Client, vm, dataDir string) error {
	image, err := c.GetImage(ctx, benchImage)
	if err != nil {
		return err
	}
	_, machine, err := copyOfVM(dataDir, image, vm, workDisk)
	if err != nil {
		return err
	}
	defer func() { _ = machine.close() }() // files of a temporary directory
	if err := c.DeleteVM(ctx, vm); err != nil {
		return err
	}
	socket := filepath.Join(machine.dir, "port.sock")
	return machine.run(ctx, func(session *wire.Client) error { return w.alongPort(ctx, session, socket) },
		"-chardev", "socket,id=port,server=on,wait=off,path="+socket,
		"-device", `{"driver":"virtserialport","chardev":"port","name":"hatch.bench.0"}`)
}

// findPort sets $port to what the guest calls the port: the second, after the
// agent's, of whichever number the device has.
const findPort = "port=$(echo /dev/vport*p2); "

func (w *works) alongPort(ctx context.Context, session *wire.Client, socket string) error {
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
		_, err := io.CopyN(port, noise(), fileSize)
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

// benchProcess is the one process at a time that is run past hatchd.
const benchProcess = "exec_benchbench00"

// withPort runs a line in the guest that has one end of the port while do has
// the other. It returns once both are through: the line sees the port's end
// when do is done.
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
	return errors.Join(awaitProcess(ctx, session), session.RemoveProcess(ctx, benchProcess))
}

// awaitProcess returns when the process has ended, well or not.
func awaitProcess(ctx context.Context, session *wire.Client) error {
	_, stream, err := session.AttachProcess(ctx, benchProcess, 0)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	_, err = untilExit(stream)
	return err
}

func (w *works) print(out io.Writer) {
	rate := func(d time.Duration) float64 { return fileSize / 1e6 / d.Seconds() }
	fmt.Fprintf(out, "\nwork inside the minimal image, %d MiB, against a bare port of the same guest\n", workMem)
	fmt.Fprintf(out, "  POST /vms/{id}/exec of /bin/true     %s\n", w.execs.tail())
	fmt.Fprintf(out, "  /bin/true from the guest's own shell mean %s\n", ms(w.inGuest))
	fmt.Fprintf(out, "  64 bytes through the port and back   %s\n", w.echo.tail())
	fmt.Fprintf(out, "  ratio of the medians                 %.1f; without what the guest's own fork and exec take, %.1f\n",
		float64(w.execs.median())/float64(w.echo.median()), float64(w.execs.median()-w.inGuest)/float64(w.echo.median()))
	fmt.Fprintf(out, "  a file of %d MiB up, and down        %.1f MB/s, %.1f MB/s\n", fileSize>>20, rate(w.up.median()), rate(w.down.median()))
	fmt.Fprintf(out, "  the same through the port            %.1f MB/s, %.1f MB/s\n", rate(w.rawUp), rate(w.rawDown))
	fmt.Fprintf(out, "  time against the port's              %.2f, %.2f\n",
		float64(w.up.median())/float64(w.rawUp), float64(w.down.median())/float64(w.rawDown))
}
