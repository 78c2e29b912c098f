package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// changes listens to the kernel's reports of changed rules, interfaces and addresses.
type changes struct {
	happened chan struct{} // has one entry if there was a change since the last read
	conns    []*netlink.Conn
	readers  sync.WaitGroup
}

// listenForChanges listens until close.
func listenForChanges() (*changes, error) {
	c := &changes{happened: make(chan struct{}, 1)}
	groups := []struct {
		family int
		group  uint32
	}{
		{unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES},
		{unix.NETLINK_ROUTE, unix.RTNLGRP_LINK}, // ports, too
		{unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_IFADDR},
	}
	for _, g := range groups {
		if err := c.listen(g.family, g.group); err != nil {
			c.close()
			return nil, fmt.Errorf("cannot listen for changes of the network: %w", err)
		}
	}
	return c, nil
}

func (c *changes) listen(family int, group uint32) error {
	conn, err := netlink.Dial(family, nil)
	if err != nil {
		return err
	}
	c.conns = append(c.conns, conn)
	if err := conn.JoinGroup(group); err != nil {
		return err
	}
	c.readers.Go(func() { c.read(conn, family) })
	return nil
}

// read reports changes until the connection is closed. A report that the kernel could
// not deliver is one, too.
func (c *changes) read(conn *netlink.Conn, family int) {
	for {
		messages, err := conn.Receive()
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return
		}
		if err == nil && family == unix.NETLINK_NETFILTER && !byAnother(messages) {
			continue
		}
		select {
		case c.happened <- struct{}{}:
		default:
		}
	}
}

// byAnother reports whether another process has changed rules. The last report of
// each transaction names the thread.
func byAnother(messages []netlink.Message) bool {
	const generation = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN
	const family = 4 // bytes before the attributes
	for _, m := range messages {
		if m.Header.Type != generation || len(m.Data) < family {
			continue
		}
		// The attribute is named after a process, and names a thread.
		thread := attribute(m.Data[family:], unix.NFTA_GEN_PROC_PID)
		if len(thread) < 4 || unix.Access(fmt.Sprintf("/proc/self/task/%d", binary.BigEndian.Uint32(thread)), unix.F_OK) != nil {
			return true
		}
	}
	return false
}

func (c *changes) close() {
	for _, conn := range c.conns {
		_ = conn.Close()
	}
	c.readers.Wait()
}
