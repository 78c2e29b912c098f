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

// domain is a libvirt guest with the kernel, initramfs, disks and devices of
// hatchd's. Arguments that libvirt does not know are passed to QEMU.
type domain struct {
	Name, Kind     string // Kind is kvm, or qemu for software
	MemMiB         int
	Program        string
	Kernel, Initrd string
	Cmdline        string
	Console        string // a file
	Args           []string

	disks map[string]string // files, by their names in QEMU's arguments
}

// The guest has none of libvirt's own devices: they need PCI.
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

// domainOf makes a domain from a VMM of hatchd, with copies of its files in dir.
func domainOf(b *bare, dir string, mem int) (domain, error) {
	d := domain{Name: domainName, Kind: "qemu", MemMiB: mem, Program: b.program, Console: filepath.Join(dir, "console"), disks: map[string]string{}}
	for i := 0; i+1 < len(b.args); i++ {
		if !strings.HasPrefix(b.args[i], "-") || strings.HasPrefix(b.args[i+1], "-") {
			continue // a value, or a flag without one
		}
		if err := d.addArg(b, dir, b.args[i], b.args[i+1]); err != nil {
			return d, err
		}
	}
	return d, nil
}

// addArg adds an argument of QEMU. It omits the arguments that libvirt adds itself,
// and the memory, which libvirt configures in its own way.
func (d *domain) addArg(b *bare, dir, flag, value string) (err error) {
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
	case "-add-fd": // comes before the disk that uses it
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
		d.Args = append(d.Args, flag, "user,id=net0") // libvirt may not open a TAP here
	case "-device", "-global", "-cpu":
		d.Args = append(d.Args, flag, value)
	}
	return err
}

// copyOut copies the file that QEMU has as the descriptor fd, and returns the path of
// the copy.
func (b *bare) copyOut(fd, dir string) (string, error) {
	from := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), b.file(fd).Fd())
	to := filepath.Join(dir, "file-"+fd)
	if out, err := exec.Command("cp", "--sparse=always", from, to).CombinedOutput(); err != nil {
		return "", fmt.Errorf("cannot copy a file of the guest: %w: %s", err, out)
	}
	return to, nil
}
