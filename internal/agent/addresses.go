package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/logkey"
)

// maxAddresses limits the addresses in one report.
const maxAddresses = 64

// watchAddresses updates the status with the guest's addresses, now and after each
// change.
func (a *Agent) watchAddresses(ctx context.Context) {
	events, err := listenForAddresses()
	a.updateAddresses()
	if err != nil {
		a.log.Error("cannot watch the addresses", logkey.Error, err)
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = events.SetReadDeadline(time.Now()) })
	defer stop()
	defer func() { _ = events.Close() }()
	buf := make([]byte, 8<<10)
	for {
		// The agent does not parse events, but lists all addresses again after each.
		// ENOBUFS means that the kernel dropped some.
		if _, err := events.Read(buf); err != nil && !errors.Is(err, syscall.ENOBUFS) {
			return
		}
		a.updateAddresses()
	}
}

func listenForAddresses() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	groups := uint32(unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_LINK)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "rtnetlink"), nil
}

func (a *Agent) updateAddresses() {
	found, err := addresses()
	if err != nil {
		a.log.Error("cannot list the addresses", logkey.Error, err)
		return
	}
	a.status.setAddresses(found)
}

// addresses lists the guest's addresses, except those of loopback and link-local
// ones.
func addresses() ([]wire.Address, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var found []wire.Address
	for _, i := range interfaces {
		if i.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			return nil, fmt.Errorf("interface %s: %w", i.Name, err)
		}
		for _, addr := range addrs {
			ipNet, ok := addr.(*net.IPNet)
			if ok && !ipNet.IP.IsLinkLocalUnicast() && len(found) < maxAddresses {
				found = append(found, wire.Address{Interface: i.Name, Prefix: ipNet.String()})
			}
		}
	}
	return found, nil
}
