package mesh.apps.eureka;

import com.netflix.appinfo.ApplicationInfoManager;
import com.netflix.appinfo.InstanceInfo;
import com.netflix.discovery.CacheRefreshedEvent;
import com.netflix.discovery.EurekaClient;
import com.netflix.discovery.shared.Application;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import mesh.apps.Console;
import mesh.apps.Directory;
import mesh.apps.Flags;
import org.springframework.boot.WebApplicationType;
import org.springframework.boot.autoconfigure.EnableAutoConfiguration;
import org.springframework.boot.builder.SpringApplicationBuilder;
import org.springframework.cloud.client.loadbalancer.LoadBalanced;
import org.springframework.context.ConfigurableApplicationContext;
import org.springframework.context.annotation.Bean;
import org.springframework.context.annotation.Configuration;
import org.springframework.web.client.RestTemplate;

/**
 * Eureka through Spring Cloud's stock client, {@code --servers}. Every registered instance is an application of its own.
 * {@code call NAME} calls one of the instances that the load balancer finds and answers what it says; {@code servers URLS} is
 * what the applications from now on have in place of {@code --servers}.
 */
public final class EurekaDirectory extends Directory {
    private String servers;
    private final Map<String, ConfigurableApplicationContext> applications = new HashMap<>();
    private final Map<String, ConfigurableApplicationContext> readers = new HashMap<>();

    private EurekaDirectory(String servers) {
        this.servers = servers;
    }

    /** What Spring configures; without a scan, which would find the other applications of this module. */
    @Configuration
    @EnableAutoConfiguration
    static class App {
        @Bean
        @LoadBalanced
        RestTemplate rest() {
            return new RestTemplate();
        }
    }

    private ConfigurableApplicationContext start(String... more) {
        List<String> properties = new ArrayList<>(List.of(
                "spring.main.banner-mode=off",
                "spring.jmx.enabled=false",
                "eureka.client.service-url.defaultZone=" + servers,
                "eureka.client.registry-fetch-interval-seconds=1",
                "eureka.client.instance-info-replication-interval-seconds=1",
                "eureka.client.initial-instance-info-replication-interval-seconds=0",
                "spring.cloud.loadbalancer.cache.ttl=1s",
                "eureka.instance.prefer-ip-address=true",
                "eureka.instance.lease-renewal-interval-in-seconds=1",
                "eureka.instance.lease-expiration-duration-in-seconds=8"));
        properties.addAll(List.of(more));
        return new SpringApplicationBuilder(App.class)
                .web(WebApplicationType.NONE)
                .properties(properties.toArray(String[]::new))
                .run();
    }

    private ConfigurableApplicationContext reader() {
        return readers.computeIfAbsent(servers,
                of -> start("spring.application.name=reader", "eureka.client.register-with-eureka=false"));
    }

    @Override
    protected void register(String name, String host, int port, Map<String, String> metadata) {
        String id = host + ":" + port;
        ConfigurableApplicationContext known = applications.get(name + id);
        if (known != null) {
            known.getBean(ApplicationInfoManager.class).registerAppMetadata(metadata);
            return;
        }
        List<String> properties = new ArrayList<>(List.of(
                "spring.application.name=" + name,
                "eureka.client.fetch-registry=false",
                "eureka.instance.instance-id=" + id,
                "eureka.instance.ip-address=" + host,
                "eureka.instance.non-secure-port=" + port));
        metadata.forEach((key, value) -> properties.add("eureka.instance.metadata-map." + key + "=" + value));
        applications.put(name + id, start(properties.toArray(String[]::new)));
    }

    @Override
    protected void deregister(String name, String host, int port) {
        applications.remove(name + host + ":" + port).close();
    }

    @Override
    protected void watch(String name) {
        EurekaClient client = reader().getBean(EurekaClient.class);
        client.registerEventListener(event -> {
            if (event instanceof CacheRefreshedEvent) {
                say(name, client);
            }
        });
        say(name, client);
    }

    private void say(String name, EurekaClient client) {
        List<String> entries = new ArrayList<>();
        Application application = client.getApplication(name);
        if (application != null) {
            for (InstanceInfo info : application.getInstances()) {
                entries.add(entry(info.getIPAddr(), info.getPort(), info.getMetadata()));
            }
        }
        seen(name, entries);
    }

    @Override
    protected String run(String[] words) throws Exception {
        switch (words[0]) {
            case "call" -> {
                return reader().getBean(RestTemplate.class).getForObject("http://" + words[1] + "/who", String.class);
            }
            case "servers" -> servers = words[1];
            default -> {
                return super.run(words);
            }
        }
        return "done";
    }

    public static void main(String[] args) {
        Console console = new Console();
        new EurekaDirectory(new Flags(args).require("servers")).serve(console);
    }
}
