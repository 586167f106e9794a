cd /tmp; printf '@reboot root echo boot >> /tmp/boot\n' > /etc/cron.d/b; cron -f -L 15 & for i in $(seq 40); do [ -s boot ] && break; sleep 0.2; done; cat boot; ls -a /run; 
