//go:build linux

// Command init is the Linux guest of the conformance suite: the only program of its
// initramfs. It loads the modules in the initramfs, prints a greeting on the serial
// console and executes the commands that vmmtest's guest.go describes.
//
// It is not part of the product; package testguest builds and packs it.
package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

var deaf atomic.Bool // it ignores the power button

func main() {
	for _, fs := range []string{"proc", "sysfs", "devtmpfs"} {
		target := map[string]string{"proc": "/proc", "sysfs": "/sys", "devtmpfs": "/dev"}[fs]
		_ = os.MkdirAll(target, 0o755)
		_ = unix.Mount(fs, target, fs, 0, "")
	}
	console, err := os.OpenFile("/dev/ttyS0", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return // the kernel panics, since its init has ended
	}
	setRaw(console)
	loadModules(console)
	inputs, _ := filepath.Glob("/dev/input/event*")
	for _, path := range inputs {
		go watchPowerButton(path)
	}
	go serveAgent()
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	say(console, "guest ready %s", strings.TrimSpace(string(boot)))
	lines := bufio.NewScanner(console)
	for lines.Scan() {
		execute(console, lines.Text())
	}
	say(console, "the console ended: %v", lines.Err())
	select {}
}

func say(w io.Writer, format string, args ...any) {
	_, _ = fmt.Fprintf(w, format+"\r\n", args...)
}

// setRaw turns off the echo of the terminal, and keeps line mode.
func setRaw(f *os.File) {
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return
	}
	t.Lflag, t.Oflag = 0, 0
	t.Iflag = unix.ICRNL
	t.Lflag |= unix.ICANON
	_ = unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t)
}

// loadModules loads /modules/NN-name.ko in order.
func loadModules(console io.Writer) {
	paths, _ := filepath.Glob("/modules/*.ko")
	for _, path := range paths {
		if err := loadModule(path); err != nil {
			say(console, "cannot load %s: %v", path, err)
		}
	}
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// execute executes a command of guest.go.
func execute(console io.Writer, line string) {
	verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	first, second, _ := strings.Cut(rest, " ")
	switch verb {
	case "echo":
		say(console, "echo: %s", rest)
	case "tick":
		go tick(console)
	case "deaf":
		deaf.Store(true)
		say(console, "deaf: ok")
	case "keep":
		say(console, "keep: %s", outcome(keep(first, second)))
	case "kept":
		say(console, "kept:%s", kept())
	case "poweroff":
		powerOff()
	case "reboot":
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	case "panic":
		_ = os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	case "write":
		say(console, "write: %s", outcome(writeDisk(first, second)))
	case "read":
		data, err := readDisk(first, second)
		if err != nil {
			data = err.Error()
		}
		say(console, "read: %s", data)
	case "disks":
		say(console, "disks: %s", disks())
	case "mac":
		say(console, "mac: %s", mac())
	case "fill":
		say(console, "fill: %s", outcome(fillDisk(first, second)))
	case "burn":
		say(console, "burn: %s", outcome(burn(first)))
	case "netup":
		say(console, "netup: %s", outcome(netUp()))
	}
}

// keeping is memory with data computed from a word.
type keeping struct {
	word string
	data []byte
}

var keepings []keeping

func keep(word, count string) error {
	mib, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	data, err := unix.Mmap(-1, 0, mib<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	for at := 0; at < len(data); at += 8 {
		binary.LittleEndian.PutUint64(data[at:], value(word, at))
	}
	keepings = append(keepings, keeping{word, data})
	return nil
}

// value returns the data at an offset: never 0, and different at each offset.
func value(word string, at int) uint64 {
	h := uint64(14695981039346656037)
	for _, b := range []byte(word) {
		h = (h ^ uint64(b)) * 1099511628211
	}
	return (h ^ uint64(at)) | 1<<63
}

func kept() (words string) {
	for _, k := range keepings {
		words += " " + k.found()
	}
	return words
}

func (k keeping) found() string {
	for at := 0; at < len(k.data); at += 8 {
		if binary.LittleEndian.Uint64(k.data[at:]) != value(k.word, at) {
			return "lost"
		}
	}
	return k.word
}

func outcome(err error) string {
	if err != nil {
		return err.Error()
	}
	return "ok"
}

func powerOff() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func tick(console io.Writer) {
	for n := 1; ; n++ {
		say(console, "tick %d", n)
		time.Sleep(20 * time.Millisecond)
	}
}

// disk returns the device with that serial.
func disk(serial string) (string, error) {
	paths, _ := filepath.Glob("/sys/block/*/serial")
	for _, path := range paths {
		if got, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(got)) == serial {
			return filepath.Join("/dev", filepath.Base(filepath.Dir(path))), nil
		}
	}
	return "", fmt.Errorf("no disk with serial %s", serial)
}

// disks returns the serials of all disks in the kernel's order.
func disks() string {
	paths, _ := filepath.Glob("/sys/block/vd*/serial")
	var serials []string
	for _, path := range paths {
		if serial, err := os.ReadFile(path); err == nil {
			serials = append(serials, strings.TrimSpace(string(serial)))
		}
	}
	return strings.Join(serials, " ")
}

func writeDisk(serial, word string) error {
	dev, err := disk(serial)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(dev, os.O_WRONLY|unix.O_SYNC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write([]byte(word))
	return err
}

func readDisk(serial, count string) (string, error) {
	dev, err := disk(serial)
	if err != nil {
		return "", err
	}
	n, err := strconv.Atoi(count)
	if err != nil {
		return "", err
	}
	f, err := os.Open(dev)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data := make([]byte, n)
	_, err = io.ReadFull(f, data)
	return string(data), err
}

// fillDisk writes whole MiBs without the page cache, so that the device gets exactly
// these bytes.
func fillDisk(serial, count string) error {
	dev, err := disk(serial)
	if err != nil {
		return err
	}
	mib, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(dev, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // whole pages
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(data) }()
	for range mib {
		if _, err := f.Write(data); err != nil {
			return err
		}
	}
	return nil
}

func burn(milliseconds string) error {
	ms, err := strconv.Atoi(milliseconds)
	if err != nil {
		return err
	}
	for end := time.Now().Add(time.Duration(ms) * time.Millisecond); time.Now().Before(end); {
	}
	return nil
}

const netDevice = "eth0"

func mac() string {
	dev, err := net.InterfaceByName(netDevice)
	if err != nil {
		return err.Error()
	}
	return dev.HardwareAddr.String()
}

func netUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq(netDevice)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req)
}

// inputEvent is struct input_event of 64-bit Linux.
type inputEvent struct {
	Sec, Usec  int64
	Type, Code uint16
	Value      int32
}

const (
	evKey    = 1
	keyPower = 116
)

// watchPowerButton powers off when the input device reports a press of the button.
func watchPowerButton(path string) {
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer f.Close()
	raw := make([]byte, unsafe.Sizeof(inputEvent{}))
	for {
		if _, err := io.ReadFull(f, raw); err != nil {
			return
		}
		kind, code := binary.LittleEndian.Uint16(raw[16:]), binary.LittleEndian.Uint16(raw[18:])
		if kind == evKey && code == keyPower && !deaf.Load() {
			powerOff()
		}
	}
}

// serveAgent answers each line on the agent's port. The port stays open: if it were
// closed when a host disconnects, the lines that the next host has sent already would
// be lost.
func serveAgent() {
	f, err := os.OpenFile(agentPort(), os.O_RDWR, 0)
	if err != nil {
		return
	}
	for {
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			_, _ = fmt.Fprintf(f, "agent: %s\n", lines.Text())
		}
		time.Sleep(10 * time.Millisecond) // no host is connected: a read ends at once
	}
}

func agentPort() string {
	names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
	for _, path := range names {
		if name, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(name)) == "hatch.agent.0" {
			return filepath.Join("/dev", filepath.Base(filepath.Dir(path)))
		}
	}
	return ""
}
