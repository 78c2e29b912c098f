package access

import "fmt"

// Local returns the principal of a process of this host that needs no key: the admin,
// named after the process's user. It is not refused while that user is disabled: root
// could enable it in the database.
func (s *Service) Local(uid uint32) Principal {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Principal{OwnerID: AdminID, UserName: "admin", Role: RoleAdmin, KeyName: fmt.Sprintf("local:uid %d", uid), Rights: AllRights, seen: s.revocations}
}
