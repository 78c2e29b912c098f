package httpapi

import (
	"bytes"
	"encoding/json"
	"sync"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/vm"
)

// maxEncoded bounds the VMs whose JSON is cached; each takes about 1 KiB.
const maxEncoded = 10_000

// encodedVMs caches the JSON of VMs as lists show them, by id. Encoding takes longer
// than the rest of a list, and most VMs do not change between two lists.
type encodedVMs struct {
	mu sync.Mutex
	by map[string]encodedVM
}

type encodedVM struct {
	revision int64
	text     []byte // never modified once stored
}

// list returns the page as a JSON array. use tells how VMs are used, which changes more
// often than they do.
func (e *encodedVMs) list(page []vm.VM, use func(vm.VM) api.Use) ([]byte, error) {
	const usual = 1024 // bytes of one VM
	list := append(make([]byte, 0, len(page)*usual+4), '[')
	for i, v := range page {
		if i > 0 {
			list = append(list, ',')
		}
		text, err := e.vm(v)
		if err != nil {
			return nil, err
		}
		used, err := json.Marshal(use(v))
		if err != nil {
			return nil, err
		}
		if list = append(list, text...); len(used) > len("{}") { // its fields, after the others
			list[len(list)-1] = ','
			list = append(list, used[1:]...)
		}
	}
	return append(list, "]\n"...), nil
}

func (e *encodedVMs) vm(v vm.VM) ([]byte, error) {
	e.mu.Lock()
	known, ok := e.by[v.ID]
	e.mu.Unlock()
	if ok && known.revision == v.Revision {
		return known.text, nil
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false) // as in all other answers
	if err := enc.Encode(listedVM(v)); err != nil {
		return nil, err
	}
	text := bytes.TrimSuffix(out.Bytes(), []byte("\n"))
	if v.Revision == 0 {
		return text, nil // not stored, so not cached
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.by == nil || len(e.by) >= maxEncoded {
		e.by = map[string]encodedVM{} // drops deleted VMs, too
	}
	e.by[v.ID] = encodedVM{v.Revision, text}
	return text, nil
}
