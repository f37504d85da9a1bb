package mesh.apps.eurekaserver;

import mesh.apps.Console;
import mesh.apps.Flags;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.boot.builder.SpringApplicationBuilder;
import org.springframework.cloud.netflix.eureka.server.EnableEurekaServer;

/** Spring Cloud's Eureka server, alone; every further flag is a property of Spring. */
@SpringBootApplication
@EnableEurekaServer
public class Server {
    public static void main(String[] args) {
        Console console = new Console();
        Flags flags = new Flags(args);
        new SpringApplicationBuilder(Server.class)
                .properties(
                        "spring.main.banner-mode=off",
                        "server.address=" + flags.require("address"),
                        "server.port=" + flags.require("port"),
                        "eureka.instance.ip-address=" + flags.require("address"),
                        "eureka.instance.prefer-ip-address=true",
                        "eureka.client.register-with-eureka=false",
                        "eureka.client.fetch-registry=false",
                        "eureka.server.wait-time-in-ms-when-sync-empty=0",
                        "eureka.server.eviction-interval-timer-in-ms=" + flags.get("eviction", "1000"),
                        "eureka.server.enable-self-preservation=" + flags.get("self-preservation", "false"),
                        "eureka.server.response-cache-update-interval-ms=" + flags.get("cache", "200"))
                .run();
        console.provide();
    }
}
