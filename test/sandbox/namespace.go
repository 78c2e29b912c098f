package sandbox

import (
	"fmt"
	"runtime"

	"github.com/vishvananda/netns"
)

// OnInternet calls do in the namespace that plays the internet. Sockets that do opens
// stay there.
func OnInternet(do func() error) error { return inNamespace("/run/netns/internet", do) }

// inNamespace calls do in the network namespace of a file.
func inNamespace(file string, do func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := netns.Get()
	if err != nil {
		return err
	}
	defer own.Close()
	other, err := netns.GetFromPath(file)
	if err != nil {
		return fmt.Errorf("cannot open the namespace: %w", err)
	}
	defer other.Close()
	if err := netns.Set(other); err != nil {
		return fmt.Errorf("cannot enter the namespace: %w", err)
	}
	defer func() {
		if err := netns.Set(own); err != nil {
			panic(err) // the thread must not go on in the wrong namespace
		}
	}()
	return do()
}
