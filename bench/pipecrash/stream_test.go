package pipecrash

func (s *stage) capture(tables []string) {}
