package main

import (
	"encoding/xml"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestDomainOf makes a domain of a guest that hatchd has started.
func TestDomainOf(t *testing.T) {
	b := &bare{program: "/usr/bin/qemu", args: []string{
		"-name", "guest=vm_1@/d", "-no-user-config", "-nodefaults", "-display", "none",
		"-machine", "microvm,acpi=on,isa-serial=on,memory-backend=memory", "-accel", "tcg,thread=multi", "-cpu", "max",
		"-kernel", "/proc/self/fd/3", "-initrd", "/proc/self/fd/4", "-append", `console=ttyS0 quoted="<&"`,
		"-chardev", "socket,id=qmp,fd=5,server=on,wait=off", "-chardev", "socket,id=agent,fd=6,server=on,wait=off",
		"-add-fd", "fd=7,set=1", "-blockdev", `{"filename":"/dev/fdset/1"}`,
		"-device", `{"driver":"virtio-blk-device"}`, "-netdev", "tap,id=net0,fd=8",
	}}
	for _, fd := range []string{"3", "4", "7"} {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("content of " + fd); err != nil {
			t.Fatal(err)
		}
		b.put(fd, f)
	}
	defer func() { _ = b.file("3").Close(); _ = b.file("4").Close(); _ = b.file("7").Close() }()
	dir := t.TempDir()
	d, err := domainOf(b, dir, 256)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	if err := domainXML.Execute(&text, d); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Kind    string `xml:"type,attr"`
		Memory  int    `xml:"memory"`
		Kernel  string `xml:"os>kernel"`
		Cmdline string `xml:"os>cmdline"`
		Args    []struct {
			Value string `xml:"value,attr"`
		} `xml:"commandline>arg"`
	}
	if err := xml.Unmarshal([]byte(text.String()), &got); err != nil {
		t.Fatalf("%v in %s", err, &text)
	}
	if got.Kind != "qemu" || got.Memory != 256 || got.Cmdline != `console=ttyS0 quoted="<&"` {
		t.Errorf("%+v", got)
	}
	if kernel, err := os.ReadFile(got.Kernel); err != nil || string(kernel) != "content of 3" {
		t.Errorf("the kernel is %q, %v", kernel, err)
	}
	var args []string
	for _, a := range got.Args {
		args = append(args, a.Value)
	}
	want := []string{
		"-machine", "acpi=on,isa-serial=on", "-cpu", "max",
		"-chardev", "socket,id=agent,path=" + filepath.Join(dir, "agent") + ",server=on,wait=off",
		"-blockdev", `{"filename":"` + filepath.Join(dir, "file-7") + `"}`,
		"-device", `{"driver":"virtio-blk-device"}`, "-netdev", "user,id=net0",
	}
	if !slices.Equal(args, want) {
		t.Errorf("QEMU gets %q, want %q", args, want)
	}
}
