package main

import (
	"encoding/xml"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/template"
)

// domainName is what libvirt calls its guest.
const domainName = "bench-libvirt"

// domain is a guest that libvirt runs: the same kernel, initramfs, disks and
// devices as hatchd's. What libvirt has no words for goes to QEMU as it is.
type domain struct {
	Name, Kind     string // Kind is kvm, or qemu for software
	MemMiB         int
	Program        string
	Kernel, Initrd string
	Cmdline        string
	Console        string // a file
	Args           []string

	disks map[string]string // files, by the name that QEMU has for them
}

// Of libvirt's own devices the guest has none: they need PCI.
var domainXML = template.Must(template.New("domain").Funcs(template.FuncMap{"x": escaped}).Parse(
	`<domain type="{{.Kind}}" xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0">
  <name>{{.Name}}</name>
  <memory unit="MiB">{{.MemMiB}}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch="x86_64" machine="microvm">hvm</type>
    <kernel>{{x .Kernel}}</kernel>
    <initrd>{{x .Initrd}}</initrd>
    <cmdline>{{x .Cmdline}}</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <emulator>{{x .Program}}</emulator>
    <serial type="file"><source path="{{x .Console}}" append="on"/><target type="isa-serial" port="0"/></serial>
    <controller type="usb" model="none"/>
    <memballoon model="none"/>
  </devices>
  <qemu:commandline>{{range .Args}}
    <qemu:arg value="{{x .}}"/>{{end}}
  </qemu:commandline>
</domain>
`))

func escaped(s string) (string, error) {
	var b strings.Builder
	err := xml.EscapeText(&b, []byte(s))
	return b.String(), err
}

// domainOf makes a domain of what hatchd has started, with files of its own
// in dir.
func domainOf(b *bare, dir string, mem int) (domain, error) {
	d := domain{Name: domainName, Kind: "qemu", MemMiB: mem, Program: b.program, Console: filepath.Join(dir, "console"), disks: map[string]string{}}
	for i := 0; i+1 < len(b.args); i++ {
		if !strings.HasPrefix(b.args[i], "-") || strings.HasPrefix(b.args[i+1], "-") {
			continue // a value, or a flag without one
		}
		if err := d.take(b, dir, b.args[i], b.args[i+1]); err != nil {
			return d, err
		}
	}
	return d, nil
}

// take takes over one argument of QEMU's. What libvirt says by itself is left
// out, and so is the memory: libvirt keeps that in its own way.
func (d *domain) take(b *bare, dir, flag, value string) (err error) {
	switch flag {
	case "-kernel":
		d.Kernel, err = b.copyOut(bootFile.FindStringSubmatch(value)[1], dir)
	case "-initrd":
		d.Initrd, err = b.copyOut(bootFile.FindStringSubmatch(value)[1], dir)
	case "-append":
		d.Cmdline = value
	case "-accel":
		if strings.HasPrefix(value, "kvm") {
			d.Kind = "kvm"
		}
	case "-machine":
		words := slices.DeleteFunc(strings.Split(value, ","), func(w string) bool { return w == "microvm" || strings.HasPrefix(w, "memory-backend=") })
		d.Args = append(d.Args, flag, strings.Join(words, ","))
	case "-add-fd": // comes before the disk that is there
		m := diskFile.FindStringSubmatch(value)
		d.disks["/dev/fdset/"+m[2]], err = b.copyOut(m[1], dir)
	case "-blockdev":
		for set, file := range d.disks {
			value = strings.ReplaceAll(value, strconv.Quote(set), strconv.Quote(file))
		}
		d.Args = append(d.Args, flag, value)
	case "-chardev":
		if strings.HasPrefix(value, "socket,id=agent,") {
			d.Args = append(d.Args, flag, "socket,id=agent,path="+filepath.Join(dir, "agent")+",server=on,wait=off")
		}
	case "-netdev":
		d.Args = append(d.Args, flag, "user,id=net0") // a TAP needs rights that libvirt does not have here
	case "-device", "-global", "-cpu":
		d.Args = append(d.Args, flag, value)
	}
	return err
}

// copyOut copies the file that QEMU has as the descriptor fd, and returns where
// to.
func (b *bare) copyOut(fd, dir string) (string, error) {
	from := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), b.file(fd).Fd())
	to := filepath.Join(dir, "file-"+fd)
	if out, err := exec.Command("cp", "--sparse=always", from, to).CombinedOutput(); err != nil {
		return "", fmt.Errorf("cannot copy what the guest boots from: %w: %s", err, out)
	}
	return to, nil
}
