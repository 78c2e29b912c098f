package vm

// Ending is closed once the service is being closed.
func (s *Service) Ending() <-chan struct{} { return s.closing }
