"""What a run reports: records, the status line and the page; and what it would be, beforehand."""
