package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/test/sandbox"
)

const (
	httpMem    = 256 // MiB
	httpRounds = 20  // n, of each
	httpWarmUp = 2   // more rounds, not counted
	serveHTTP  = "mkdir -p /tmp/www && echo well >/tmp/www/health && httpd -p 8080 -h /tmp/www"
)

// The two ends of a bare QEMU's TAP, whose guest has the address of hatchd's besides.
const (
	bareHost  = "198.18.0.1/30"
	bareGuest = "198.18.0.2"
)

// requests are the times until the first byte of an answer.
type requests struct {
	awake sample // through a route to a running VM
	ram   sample // to a sleeping one, memory in RAM
	disk  sample // memory on disk
	bare  sample // a bare QEMU is woken, and then asked
	plain sample // a bare QEMU that runs is asked
}

// measureHTTP asks a program in a sleeping guest through a route, and one in the guest of
// a bare QEMU that is woken for it.
func measureHTTP(out io.Writer, d *sandbox.Daemon) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	c, err := withMinimal(ctx, d)
	if err != nil {
		return err
	}
	var r requests
	if err := withTrial(ctx, c, d.DataDir, httpMem, r.measure); err != nil {
		return err
	}
	r.print(out)
	return nil
}

func (r *requests) measure(ctx context.Context, t trial) error {
	if err := runThrough(ctx, t.c, t.vm, api.Command{Shell: serveHTTP}); err != nil {
		return err
	}
	if err := t.qemu.serve(ctx); err != nil {
		return fmt.Errorf("cannot serve in a bare QEMU: %w", err)
	}
	route, err := t.c.CreateRoute(ctx, t.vm, api.CreateRoute{TargetPort: 8080})
	if err != nil {
		return err
	}
	address, err := url.Parse(route.URL)
	if err != nil {
		return err
	}
	return repeat(httpWarmUp, httpRounds, func() { *r = requests{} }, func() error {
		return errors.Join(r.round(ctx, t.c, t.vm, address), r.bareRound(ctx, t.qemu))
	})
}

// round asks the VM when it sleeps in RAM, when it is awake, and when it sleeps on disk.
func (r *requests) round(ctx context.Context, c *client.Client, id string, route *url.URL) error {
	proxy := net.JoinHostPort("127.0.0.1", cmp.Or(route.Port(), "80"))
	var s sleeps // its own times do not count here
	if err := s.sleep(ctx, c, id); err != nil {
		return err
	}
	if err := r.ram.addAnswer(ctx, time.Now(), proxy, route.Host); err != nil {
		return err
	}
	if err := r.awake.addAnswer(ctx, time.Now(), proxy, route.Host); err != nil {
		return err
	}
	if err := errors.Join(s.sleep(ctx, c, id), s.awaitDurable(ctx, c, id)); err != nil {
		return err
	}
	return r.disk.addAnswer(ctx, time.Now(), proxy, route.Host)
}

func (r *requests) bareRound(ctx context.Context, qemu *sleeper) error {
	guest := net.JoinHostPort(bareGuest, "8080")
	if _, err := qemu.sleep(); err != nil {
		return fmt.Errorf("cannot save a bare QEMU: %w", err)
	}
	began := time.Now()
	if err := errors.Join(qemu.resume(ctx, filepath.Join(qemu.dir, "devices"), false), connectTAP()); err != nil {
		return fmt.Errorf("cannot wake a bare QEMU: %w", err)
	}
	if err := r.bare.addAnswer(ctx, began, guest, guest); err != nil {
		return err
	}
	return r.plain.addAnswer(ctx, time.Now(), guest, guest)
}

// serve starts a web server in the guest, at an address on the TAP.
func (h *sleeper) serve(ctx context.Context) error {
	session, err := h.session(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = session.Close() }()
	return runIn(ctx, session, wire.ProcessSpec{Shell: "ip address add " + bareGuest + "/30 dev eth0 && " + serveHTTP})
}

// connectTAP gives the TAP of the bare QEMU, which ends with it, the host's address.
func connectTAP() error {
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(links, func(l netlink.Link) bool { return strings.HasPrefix(l.Attrs().Name, "bare") })
	if i < 0 {
		return errors.New("a bare QEMU has no TAP")
	}
	address, err := netlink.ParseAddr(bareHost)
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrAdd(links[i], address), netlink.LinkSetUp(links[i]))
}

// addAnswer asks a server, over a new connection, and adds the time from began to the
// first byte of its answer.
func (s *sample) addAnswer(ctx context.Context, began time.Time, server, host string) error {
	var first time.Time
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotFirstResponseByte: func() { first = time.Now() }})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+server+"/health", nil)
	if err != nil {
		return err
	}
	req.Host = host
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return err
	}
	text, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil || string(text) != "well\n" {
		return fmt.Errorf("%s has answered %s %q: %w", host, resp.Status, text, err)
	}
	*s = append(*s, first.Sub(began))
	return nil
}

func (r *requests) print(out io.Writer) {
	fmt.Fprintf(out, "\nan HTTP request to the minimal image, %d MiB, until the first byte of the answer, in turn\n", httpMem)
	fmt.Fprintf(out, "  through a route, asleep in RAM           %s\n", r.ram.tail())
	fmt.Fprintf(out, "  through a route, asleep on disk          %s\n", r.disk.tail())
	fmt.Fprintf(out, "    bare QEMU, woken and then asked        %s\n", r.bare.tail())
	fmt.Fprintf(out, "    ratio of the medians, RAM and disk     %.2f, %.2f\n", ratio(r.ram, r.bare), ratio(r.disk, r.bare))
	fmt.Fprintf(out, "  through a route, awake                   %s\n", r.awake.tail())
	fmt.Fprintf(out, "    bare QEMU, awake                       %s\n", r.plain.tail())
	fmt.Fprintf(out, "    ratio of the medians                   %.2f\n", ratio(r.awake, r.plain))
}
